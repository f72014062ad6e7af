"""Run recorded iterations of flow-matching teachers through a real Trainer."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import sid_lsg.training.module
from sid_lsg.data.prompts import PromptBatch
from sid_lsg.data.real_images import RealBatch
from sid_lsg.method.draws import Draws, Phase
from sid_lsg.method.phases import PhaseInputs
from sid_lsg.options.flow import Flow
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.training import Gradients
from sid_lsg.training.module import SiDLSG
from tests.helpers.golden_flow import GoldenFlow, close, noises

SHIFT = 3.0  # of use_sd3_shift


class Recorder(SiDLSG):
    """Record gradients and outputs, and replace the random numbers by recorded ones."""

    draws: dict[int, list[Draws]]
    ks: Sequence[int]
    real: dict[str, Tensor]

    def on_fit_start(self) -> None:
        self.gradients: dict[str, list[list[Tensor]]] = {"fake": [], "g": []}
        self.outputs: dict[str, list[Any]] = {"fake": [], "g": []}
        self.inputs: list[Tensor] = []
        self.generator.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, network: Any, args: Any, kwargs: Any) -> None:
        self.inputs.append((args[0] if args else kwargs["hidden_states"]).detach())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        first = optimizer.param_groups[0]["params"][0]
        name = "fake" if first is next(self.fake_score.parameters()) else "g"
        network = self.fake_score if name == "fake" else self.generator
        self.gradients[name].append([p.grad.clone() for p in network.parameters()])

    def fake_score_phase(self, inputs: PhaseInputs) -> Any:
        if inputs.real is not None:
            # The official code gives real images the pooled features of the fake prompts.
            own = {k: v for k, v in inputs.condition.items() if k == "pooled_projections"}
            real = inputs.real._replace(condition=inputs.real.condition | own)
            close(real.condition["encoder_hidden_states"], self.real["prompt_embeds"])
            inputs = inputs._replace(real=real)
        output = super().fake_score_phase(inputs)
        self.outputs["fake"].append(output)
        return output

    def generator_phase(self, inputs: PhaseInputs) -> Any:
        output = super().generator_phase(inputs)
        self.outputs["g"].append(output)
        return output

    def output(self, phase: str, name: str) -> Tensor:
        return torch.cat([getattr(output, name).detach() for output in self.outputs[phase]])


def made(golden: GoldenFlow, entry: dict[str, Any], **options: Any) -> Recorder:
    """Make the module of a recorded setting."""
    kappas = [entry["kappa1"], entry["kappa2"], entry.get("kappa3", entry["kappa2"])]
    shift = entry.get("shift", SHIFT if entry.get("use_sd3_shift") else None)
    lr, betas = entry.get("lr", 0.0), tuple(entry.get("betas", (0.0, 0.999)))

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=entry.get("eps", 1e-8))

    scale = {"gradients": Gradients(generator_scale=entry.get("loss_scaling_G", 1.0))}
    module = Recorder(
        str(golden.pipeline(entry["family"])),
        guidance=Guidance(train_fake=kappas[0], eval_fake=kappas[1:], eval_real=entry["kappa4"]),
        alpha=entry.get("alpha", 1.0),
        weighting=entry.get("weighting"),
        t_init=entry.get("init_timestep"),
        flow=Flow(shift=shift),
        num_steps=entry["num_steps"],
        noise=entry.get("noise_type", "fresh"),
        micro_batch_size=entry["batch"] // entry["rounds"] if "rounds" in entry else None,
        optimizer_fake=adam,
        optimizer_generator=adam,
        **scale | options,
    )
    assert module.recipe.step_training == "last"
    golden.use_official_text(module.teacher, entry["family"])
    return module


def drawn(recorded: dict[str, Tensor], prefix: str, k: int) -> Draws:
    t = recorded[f"{prefix}sigma"]
    eps = recorded[f"{prefix}noise"]
    return Draws(noises(recorded, prefix, k), eps, t, torch.ones_like(t))


def train(
    module: Recorder,
    prompts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    real: RealBatch | None = None,
) -> None:
    """Fit for as many iterations as there are recorded draws."""

    def recorded(phase: int, iteration: int, *_: Any, **__: Any) -> Draws:
        return module.draws[phase][iteration]

    monkeypatch.setattr(sid_lsg.training.module, "draw", recorded)
    monkeypatch.setattr(sid_lsg.training.module, "draw_steps", lambda i, *_: module.ks[i])
    steps = len(module.ks)
    batches = [PromptBatch(i, 0, prompts, prompts, real=real) for i in range(steps)]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, barebones=True, enable_model_summary=False
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == steps


def prepared(golden: GoldenFlow, entry: dict[str, Any], **options: Any) -> tuple[Recorder, Any]:
    """Make a module with recorded weights and draws for one iteration; return the prompts too."""
    family, inputs = entry["family"], entry["inputs"]
    module = made(golden, entry, **options)
    golden.load(entry.get("fake_weights", "fake"), family, module.fake_score)
    golden.load(entry.get("g_weights", "g"), family, module.generator)
    recorded = golden.tensors(inputs)
    phases = (Phase.FAKE_SCORE, "phase1."), (Phase.GENERATOR, "phase2.")
    module.draws = {phase: [drawn(recorded, name, entry["k"])] for phase, name in phases}
    module.ks = [entry["k"]]
    return module, golden.entry(inputs)["prompts"]


def check_outputs(module: Recorder, entry: dict[str, Any], expected: dict[str, Tensor]) -> None:
    """Compare the outputs of both phases."""
    close(module.output("fake", "x_g"), expected["phase1.x_g"])
    close(module.output("fake", "prediction"), expected["phase1.v_fake"])
    target = module.draws[Phase.FAKE_SCORE][0].eps - module.output("fake", "x_g")
    close(target, expected["phase1.target"])
    for name, other in (("x_g", "x_g"), ("y_fake_2", "y_fake"), ("y_real", "y_real")):
        close(module.output("g", name), expected[f"phase2.{other}"])
    if entry["kappa2"] == entry.get("kappa3", entry["kappa2"]):
        close(module.output("g", "y_fake_3"), expected["phase2.y_fake"])
    close(1 / module.output("g", "weight"), expected["phase2.scale_factor"].flatten())
    close(module.inputs[-1], module.teacher.network_input(expected["phase2.x_t_gen"]))
    times = module.teacher.schedule.generator_times(module.t_init, entry["num_steps"])
    assert expected["phase2.t_gen"].tolist() == pytest.approx(
        [times[entry["k"] - 1]] * entry["batch"]
    )


def magnitude(module: Recorder, entry: dict[str, Any]) -> float:
    """Return the generator's loss with the absolute values of its terms."""
    x_g, y_2, y_3, y_real, w = (
        module.output("g", name) for name in ("x_g", "y_fake_2", "y_fake_3", "y_real", "weight")
    )
    correction = (y_real - x_g) - entry.get("alpha", 1) * (y_real - y_3)
    terms = ((y_real - y_2) * correction).abs().flatten(1).sum(1) / w
    return float(terms.sum()) / len(w)
