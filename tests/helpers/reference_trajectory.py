"""A training trajectory in float64, written only from method.md, without code of the project.

It serves as a recorded case that the official code has not recorded: a run that starts from
perturbed weights, after some images have been seen.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

T_INIT = 625
ITERATIONS = 3


class Trajectory:
    """Three networks, two Adam optimizers with beta1 = 0, and an EMA."""

    def __init__(self, golden: Path, entry: dict[str, Any]) -> None:
        self.entry, pipeline = entry, golden / "tiny_sd"
        teacher = UNet2DConditionModel.from_pretrained(pipeline / "unet", low_cpu_mem_usage=False)
        self.teacher = teacher.double().requires_grad_(False).eval()
        self.fake, self.g = (copy.deepcopy(self.teacher) for _ in range(2))
        for name, network in (("fake", self.fake), ("g", self.g)):
            if entry["start"] == "perturbed":
                network.load_state_dict(load_file(golden / f"weights_{name}.safetensors"))
        self.ema = [p.clone() for p in self.g.parameters()]
        self.moments = {id(n): [torch.zeros_like(p) for p in n.parameters()] for n in self.networks}
        self.text = CLIPTextModel.from_pretrained(pipeline / "text_encoder").requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(pipeline / "tokenizer")
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float32) ** 2
        self.abar = (1 - betas).cumprod(0).double()
        self.images_seen, self.steps = entry["cur_nimg_start"], 0

    @property
    def networks(self) -> tuple[Any, Any]:
        return self.fake, self.g

    def encode(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
        )
        return self.text(tokens.input_ids)[0].double()

    def eps(self, network: Any, x_t: Tensor, t: Tensor, prompts: list[str], kappa: float) -> Tensor:
        c = network(x_t, t, self.encode(prompts)).sample
        u = network(x_t, t, self.encode([""] * len(prompts))).sample
        return u + kappa * (c - u)

    def noised(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        abar = self.abar[t][:, None, None, None]
        return abar.sqrt() * x + (1 - abar).sqrt() * eps

    def estimate(self, eps: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        abar = self.abar[t][:, None, None, None]
        return (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()

    def generate(self, z: Tensor, prompts: list[str]) -> Tensor:
        t = torch.full((len(z),), T_INIT)
        x_t = (1 - self.abar[T_INIT]).sqrt() * z
        return self.estimate(self.eps(self.g, x_t, t, prompts, 1.0), x_t, t)

    def adam(self, network: Any, loss: Tensor, lr: float) -> float:
        parameters = [*network.parameters()]
        gradients = torch.autograd.grad(loss, parameters)
        beta, correction = 0.999, 1 - 0.999 ** (self.steps + 1)
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, self.moments[id(network)], strict=True):
                v.mul_(beta).add_((1 - beta) * g**2)
                p.sub_(lr * g / ((v / correction).sqrt() + self.entry["eps"]))
        return float(torch.stack([g.norm() for g in gradients]).norm())

    def iteration(self, given: dict[str, Tensor], fake: list[str], g: list[str]) -> dict[str, Any]:
        """Train on the prompts, fake score first; return the recorded numbers."""
        entry, size = self.entry, len(g)
        kappa_1, kappa_2, kappa_3, kappa_4 = entry["kappas"]
        for network, other in (self.networks, self.networks[::-1]):
            network.requires_grad_(True)
            other.requires_grad_(False)
            if network is self.fake:
                z, eps, t, u = (given[f"phase1.{name}"] for name in ("z", "noise", "t", "u"))
                prompts = ["" if u[i] < 0.1 else fake[i] for i in range(size)]
                x_fake = self.generate(z.double(), prompts)
                predicted = self.eps(
                    self.fake, self.noised(x_fake, eps.double(), t), t, prompts, kappa_1
                )
                loss_fake = (predicted - eps).square().sum() / size
                norm_fake = self.adam(self.fake, loss_fake, entry["lr"])
                continue
            z, eps, t = (given[f"phase2.{name}"] for name in ("z", "noise", "t"))
            x_g = self.generate(z.double(), g)
            x_t = self.noised(x_g, eps.double(), t)
            y_2, y_3, y_real = (
                self.estimate(self.eps(judge, x_t, t, g, kappa), x_t, t)
                for judge, kappa in (
                    (self.fake, kappa_2), (self.fake, kappa_3), (self.teacher, kappa_4),
                )
            )  # fmt: skip
            w = (x_g - y_real).detach().abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-5)
            product = (y_real - y_2) * ((y_real - x_g) - entry["alpha"] * (y_real - y_3)) / w
            loss_g = product.sum() / size
            norm_g = self.adam(self.g, loss_g, entry["glr"])
        halflife = min(entry["ema_halflife_nimg"], self.images_seen * entry["ema_rampup_ratio"])
        beta = 0.5 ** (size / max(halflife, 1e-8))
        self.ema = [
            beta * old + (1 - beta) * p.detach()
            for old, p in zip(self.ema, self.g.parameters(), strict=True)
        ]
        self.images_seen += size
        self.steps += 1
        return {
            "loss_fake_rounds": [float(loss_fake)], "loss_g_rounds": [float(loss_g)],
            "grad_norm_fake": norm_fake, "grad_norm_g": norm_g, "ema_beta": beta,
            "x_g_fake": x_fake.detach(), "x_g_g": x_g.detach(),
        }  # fmt: skip


def record(golden: Path, folder: Path, name: str, **options: Any) -> None:
    """Write a folder with one trajectory, in the layout of the recorded ones.

    Args:
        golden: The recorded numbers: a pipeline, weights, prompts and random numbers.
        folder: Where to write index.json and the trajectory.
        name: The trajectory's name.
        options: The values that differ from the recorded trajectory.
    """
    index = json.loads((golden / "index.json").read_text())
    entry = index["files"]["trajA_rounds1.safetensors"]
    entry = entry | {"iterations": ITERATIONS, "kappas": [1.5, 2.0, 3.0, 3.5]} | options
    del entry["tensors"]
    inputs = load_file(golden / "traj_inputs.safetensors")
    trajectory = Trajectory(golden, entry)
    rows = [
        trajectory.iteration(
            {name: tensor[i] for name, tensor in inputs.items()},
            entry["prompts_before_dropout_fake"][i],
            entry["prompts_used_g"][i],
        )
        for i in range(ITERATIONS)
    ]
    tensors = {
        key: torch.stack([torch.as_tensor(row[key], dtype=torch.float64) for row in rows])
        for key in rows[0]
    }
    names = index["param_names"]
    for kind, values in (
        ("fake", trajectory.fake.parameters()),
        ("g", trajectory.g.parameters()),
        ("g_ema", trajectory.ema),
    ):
        final = [value.detach() for value in values]
        norms = torch.stack([value.norm() for value in final])
        tensors[f"final.{kind}.fingerprint"] = torch.stack([norms, norms], dim=1)
        tensors |= {f"final.{kind}.{n}": v for n, v in zip(names, final, strict=True)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    files = {"files": {f"{name}.safetensors": entry}}
    (folder / "index.json").write_text(json.dumps(files))
