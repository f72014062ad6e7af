"""Compare with the official code's numbers: every case_* and traj* file of `--golden DIR`.

The cases run through a real Trainer, so micro-batches, dropout, gradient repair, optimizers and EMA
are those of a training run; only the random numbers are replaced by the recorded ones. The
tolerances follow the differences that the folder's index states between the official code and an
independent computation.
"""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import sid_lsg.training.ema
import sid_lsg.training.module
from sid_lsg.data.prompts import PromptBatch
from sid_lsg.images.pixels import to_uint8
from sid_lsg.method.draws import Draws, Phase
from sid_lsg.method.sampling import seeded_noises
from sid_lsg.method.schedule import DiscreteSchedule
from sid_lsg.method.shapes import per_sample
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.training import EMA, Loading
from sid_lsg.training.gradients import gradient_norm
from sid_lsg.training.module import SiDLSG
from tests.helpers.golden import (
    GRADIENT,
    LOSS,
    LOSS_FAKE_TRAJECTORY,
    LOSS_G_TRAJECTORY,
    MOVED,
    OUTPUT,
    Golden,
    check_fingerprint,
    error,
    fingerprint,
)
from tests.helpers.paths import GOLDEN
from tests.helpers.reference_trajectory import record


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Golden:
    return Golden(pytestconfig.getoption("golden"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    root: Path = metafunc.config.getoption("golden")
    names = sorted(path.stem for path in root.glob("*.safetensors"))
    nan_cases = [name for name in names if name.startswith("case_nan")]
    cases = [name for name in names if name.startswith("case_") and name not in nan_cases]
    trajectories = [name for name in names if name.startswith("traj") and "inputs" not in name]
    assert nan_cases + cases + trajectories, f"no case_* and no traj* in {root}"
    for name, found in (
        ("case", cases),
        ("nan_case", nan_cases),
        ("trajectory", trajectories),
    ):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, found)


class Recorder(SiDLSG):
    """Record the gradients that the optimizers receive and the outputs of the phases."""

    first_image = 0  # images seen before the first recorded iteration

    def images_seen(self, batch: PromptBatch) -> int:
        return self.first_image + super().images_seen(batch)

    def on_fit_start(self) -> None:
        self.gradients: dict[str, list[list[Tensor]]] = {"fake": [], "g": []}
        self.norms: dict[str, list[float]] = {"fake": [], "g": []}
        self.outputs: dict[str, list[Any]] = {"fake": [], "g": []}
        self.betas: list[float] = []

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        first = optimizer.param_groups[0]["params"][0]
        name = "fake" if first is next(self.fake_score.parameters()) else "g"
        network = self.fake_score if name == "fake" else self.generator
        self.gradients[name].append([p.grad.clone() for p in network.parameters()])
        self.norms[name].append(float(gradient_norm([*network.parameters()])))

    def fake_score_phase(self, inputs: Any) -> Any:
        output = super().fake_score_phase(inputs)
        self.outputs["fake"].append(output)
        return output

    def generator_phase(self, inputs: Any) -> Any:
        output = super().generator_phase(inputs)
        self.outputs["g"].append(output)
        return output

    def output(self, phase: str, name: str) -> Tensor:
        return torch.cat([getattr(output, name).detach() for output in self.outputs[phase]])


def load(golden: Golden, name: str, network: torch.nn.Module) -> None:
    network.load_state_dict(golden.tensors(name.removesuffix(".safetensors")))


def train(
    module: Recorder,
    draws: dict[Phase, list[Draws]],
    prompts: dict[Phase, list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fit for as many iterations as there are recorded draws."""

    def recorded(phase: Phase, iteration: int, *_: Any, **__: Any) -> Draws:
        return draws[phase][iteration]

    def update_ema(ema: Any, trained: Any, beta: float) -> None:
        module.betas.append(beta)
        sid_lsg.training.ema.update_ema(ema, trained, beta)

    monkeypatch.setattr(sid_lsg.training.module, "draw", recorded)
    monkeypatch.setattr(sid_lsg.training.module, "update_ema", update_ema)
    steps = len(draws[Phase.GENERATOR])
    batches = [
        PromptBatch(i, 0, prompts[Phase.FAKE_SCORE][i], prompts[Phase.GENERATOR][i])
        for i in range(steps)
    ]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, barebones=True, enable_model_summary=False
    )
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert trainer.global_step == steps


def make_module(golden: Golden, case: dict[str, Any], lr: float, **options: Any) -> Recorder:
    def optimizer(rate: float) -> Any:
        betas, eps = case.get("betas", (0.0, 0.999)), case.get("eps", 1e-8)
        return lambda p: torch.optim.Adam(p, lr=rate, betas=tuple(betas), eps=eps)

    v = case.get("prediction_type", "epsilon") == "v_prediction"
    scheduler = f"{golden.path('tiny_sd_v').absolute()}/scheduler"
    module = Recorder(
        str(golden.path("tiny_sd")),
        loading=Loading(subfolders={"scheduler": scheduler} if v else None),
        alpha=case.get("alpha", 1.0),
        num_steps=case.get("num_steps", 1),
        micro_batch_size=case.get("micro_batch"),
        optimizer_fake=optimizer(case.get("lr", lr)),
        optimizer_generator=optimizer(case.get("glr", lr)),
        **options,
    )
    assert module.teacher.schedule.prediction_type == case.get("prediction_type", "epsilon")
    return module


def static_draws(golden: Golden, inputs: str, num_steps: int) -> dict[Phase, list[Draws]]:
    recorded = golden.tensors(inputs)

    def one(phase: str) -> Draws:
        extra = [recorded[f"{phase}.extra{i}"] for i in range(1, num_steps)]
        t = recorded[f"{phase}.t"]
        noises = [recorded[f"{phase}.z"], *extra]
        return Draws(noises, recorded[f"{phase}.noise"], t, torch.full(t.shape, 0.5))

    return {Phase.FAKE_SCORE: [one("phase1")], Phase.GENERATOR: [one("phase2")]}


def run_static(
    golden: Golden,
    case: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    nan: int | None = None,
    keep: list[int] | None = None,
) -> Recorder:
    """Run one iteration from the recorded weights with learning rate 0.

    Args:
        golden: The folder of recorded numbers.
        case: Kappas, alpha, steps, micro-batch.
        monkeypatch: Replaces the draws with the recorded ones.
        nan: A sample whose z becomes NaN in both phases.
        keep: The samples to train on; by default all.
    """
    kappas = [case[f"kappa{i}"] for i in (1, 2, 3, 4)]
    guidance = Guidance(train_fake=kappas[0], eval_fake=kappas[1:3], eval_real=kappas[3])
    module = make_module(golden, case, lr=0.0, guidance=guidance)
    load(golden, case.get("fake_weights", "weights_fake"), module.fake_score)
    load(golden, case.get("g_weights", "weights_g"), module.generator)
    inputs = case.get("inputs", "inputs.safetensors").removesuffix(".safetensors")
    draws = static_draws(golden, inputs, case.get("num_steps", 1))
    prompts = golden.entry(inputs)["prompts"]
    if nan is not None:
        for (phase,) in draws.values():
            phase.noises[0][nan] = float("nan")
    if keep is not None:
        prompts = [prompts[i] for i in keep]
        for phase_draws in draws.values():
            (d,) = phase_draws
            phase_draws[0] = Draws([z[keep] for z in d.noises], d.eps[keep], d.t[keep], d.u[keep])
    train(module, draws, {phase: [prompts] for phase in Phase}, monkeypatch)
    return module


def loss_magnitudes(module: Recorder, name: str, entry: dict[str, Any]) -> Tensor:
    """Return each iteration's loss with the absolute values of its terms."""
    batch = entry["batch"]
    if name == "fake":
        return module.output(name, "losses").view(-1, batch).sum(1) / batch
    x_g, y_2, y_3, y_real, w = (
        module.output(name, field) for field in ("x_g", "y_fake_2", "y_fake_3", "y_real", "weight")
    )
    correction = (y_real - x_g) - entry["alpha"] * (y_real - y_3)
    terms = ((y_real - y_2) * correction / per_sample(w, x_g)).abs()
    return terms.flatten(1).sum(1).view(-1, batch).sum(1) / batch


def test_case(golden: Golden, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, expected = golden.entry(case), golden.tensors(case)
    module = run_static(golden, entry, monkeypatch)

    assert error(module.output("fake", "x_g"), expected["phase1.x_g"]) < OUTPUT
    assert error(module.output("fake", "prediction"), expected["phase1.noise_fake"]) < OUTPUT
    assert error(module.output("g", "x_g"), expected["phase2.x_g"]) < OUTPUT
    assert error(module.output("g", "y_fake_2"), expected["phase2.y_fake"]) < OUTPUT
    if entry["kappa2"] == entry["kappa3"]:
        assert error(module.output("g", "y_fake_3"), expected["phase2.y_fake"]) < OUTPUT
    assert error(module.output("g", "y_real"), expected["phase2.y_real"]) < OUTPUT
    assert error(module.output("g", "weight"), expected["phase2.weight_factor"].flatten()) < OUTPUT

    batch, rounds = entry["batch"], entry["rounds"]
    for phase, name in (("phase1", "fake"), ("phase2", "g")):
        per_round = module.output(name, "losses").double().view(rounds, -1).sum(1) / batch
        recorded = expected[f"{phase}.loss_rounds"]
        # The generator's loss is a small difference of large terms, whose size sets its error.
        (size,) = loss_magnitudes(module, name, entry)
        assert (per_round - recorded).abs().max() < LOSS * size
        assert abs(float(per_round.sum()) - entry[f"{phase}_loss_total"]) < LOSS * size
        assert module.norms[name][0] == pytest.approx(entry[f"{phase}_grad_norm"], rel=GRADIENT)
        (gradients,) = module.gradients[name]
        check_fingerprint(gradients, expected[f"{phase}.grad_fingerprint"], GRADIENT)
        for parameter, gradient in zip(golden.names, gradients, strict=True):
            if (full := expected.get(f"{phase}.grad.{parameter}")) is not None:
                assert error(gradient, full) < GRADIENT, parameter


def test_nan_case(golden: Golden, nan_case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN sample does not change the gradients of the other samples.

    The official code behaves so only if the sample is alone in its micro-batch; in larger
    micro-batches it loses all samples, as its numbers show. This project must not.
    """
    entry, expected = golden.entry(nan_case), golden.tensors(nan_case)
    match = re.fullmatch(r"case_nan_sample(\d+)_mb(\d+).*", nan_case)
    assert match, f"cannot tell sample and micro-batch from {nan_case}"
    bad, micro_batch = int(match[1]), int(match[2])
    case = {f"kappa{i}": entry.get(f"kappa{i}", 2.0) for i in (1, 2, 3, 4)}
    module = run_static(golden, entry | case | {"micro_batch": micro_batch}, monkeypatch, nan=bad)

    # The same iteration without the sample, divided by the whole batch size.
    (batch,) = golden.tensors("inputs")["phase1.t"].shape
    good = [i for i in range(batch) if i != bad]
    without = run_static(golden, entry | case, monkeypatch, keep=good)
    for phase, name, lost in zip(
        ("phase1", "phase2"), ("fake", "g"), entry["n_zero_grad_tensors"], strict=True
    ):
        (gradients,), (reference,) = module.gradients[name], without.gradients[name]
        for parameter, ours, theirs in zip(golden.names, gradients, reference, strict=True):
            assert error(ours, theirs * len(good) / batch) < GRADIENT, parameter
        if lost == 0:
            check_fingerprint(gradients, expected[f"{phase}.grad_fingerprint"], GRADIENT)


def check_trajectory(golden: Golden, trajectory: str, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Train as recorded, with Adam, prompt dropout and EMA, and compare."""
    entry, expected = golden.entry(trajectory), golden.tensors(trajectory)
    inputs = entry["inputs"].removesuffix(".safetensors")
    recorded = golden.tensors(inputs)

    def draws(phase: str) -> list[Draws]:
        z, noise, t = (recorded[f"{phase}.{name}"] for name in ("z", "noise", "t"))
        u = recorded.get(f"{phase}.u", torch.ones_like(z[..., 0, 0, 0]))
        extra = range(1, entry.get("num_steps", 1))
        return [
            Draws([z[i], *(recorded[f"{phase}.extra{k}"][i] for k in extra)], noise[i], t[i], u[i])
            for i in range(entry["iterations"])
        ]

    kappa1, *kappa23, kappa4 = entry["kappas"]
    module = make_module(
        golden,
        entry,
        lr=1e-4,
        guidance=Guidance(train_fake=kappa1, eval_fake=[kappa23[0], kappa23[-1]], eval_real=kappa4),
        ema=EMA(entry["ema_halflife_nimg"], entry["ema_rampup_ratio"]),
    )
    module.first_image = entry.get("cur_nimg_start", 0)
    if entry["start"] == "perturbed":
        load(golden, entry.get("fake_weights", "weights_fake"), module.fake_score)
        load(golden, entry.get("g_weights", "weights_g"), module.generator)
        module.ema.load_state_dict(module.generator.state_dict())
    else:
        assert entry["start"] == "teacher", f"unknown start {entry['start']!r} of {trajectory}"
    networks = {"fake": module.fake_score, "g": module.generator, "g_ema": module.ema}
    start = {
        f"{name}.{parameter}": value.detach().clone()
        for name, network in networks.items()
        for parameter, value in network.named_parameters()
    }
    train(
        module,
        {Phase.FAKE_SCORE: draws("phase1"), Phase.GENERATOR: draws("phase2")},
        {
            Phase.FAKE_SCORE: entry["prompts_before_dropout_fake"],
            Phase.GENERATOR: entry["prompts_used_g"],
        },
        monkeypatch,
    )

    steps, batch = entry["iterations"], entry["batch"]
    for name, tolerance in (("fake", LOSS_FAKE_TRAJECTORY), ("g", LOSS_G_TRAJECTORY)):
        losses = module.output(name, "losses").double().view(steps, -1).sum(1) / batch
        totals = expected[f"loss_{name}_rounds"].sum(1)
        if name == "fake":
            assert error(losses, totals) < tolerance
        else:
            # The loss is a sum of terms of both signs and may be close to 0.
            rounding = LOSS * loss_magnitudes(module, name, entry)
            assert ((losses - totals).abs() < (tolerance * totals.abs()).maximum(rounding)).all()
        norms = torch.tensor(module.norms[name])
        assert error(norms, expected[f"grad_norm_{name}"]) < LOSS_G_TRAJECTORY
        x_g = module.output(name, "x_g").view(expected[f"x_g_{name}"].shape)
        assert error(x_g, expected[f"x_g_{name}"]) < LOSS_G_TRAJECTORY

    assert module.betas == pytest.approx(expected["ema_beta"].tolist(), rel=1e-6, abs=1e-12)

    for name, network in networks.items():
        parameters = dict(network.named_parameters())
        moved, distance, size = 0.0, 0.0, 0.0
        for parameter, value in parameters.items():
            if (final := expected.get(f"final.{name}.{parameter}")) is not None:
                moved += float((final - start[f"{name}.{parameter}"]).double().square().sum())
                distance += float((value - final).double().square().sum())
                size += float(final.double().square().sum())
        assert moved > 0
        # Late in a run, the EMA moves so little that float32 rounding is visible in each step.
        rounding = steps * 2**-24 * size**0.5
        assert distance**0.5 < max(MOVED * moved**0.5, rounding), name
        norm = expected[f"final.{name}.fingerprint"][:, 0]
        assert error(fingerprint(list(parameters.values()))[:, 0], norm) < 1e-6
    return module


def test_trajectory(golden: Golden, trajectory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train several iterations from the teacher's weights or from perturbed ones."""
    check_trajectory(golden, trajectory, monkeypatch)


@pytest.mark.parametrize(
    ("images", "beta"), [(0, 0.0), (101, 0.5 ** (4 / 5.05)), (10_000, 0.5 ** (4 / 500))]
)
def test_a_trajectory_from_perturbed_weights(
    images: int, beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use a folder of further cases, computed in float64 without code of this project."""
    options = {"start": "perturbed", "cur_nimg_start": images, "alpha": 1.2, "micro_batch": 2}
    record(GOLDEN, tmp_path, "traj_perturbed", **options)
    module = check_trajectory(Golden(tmp_path), "traj_perturbed", monkeypatch)
    assert module.betas[0] == pytest.approx(beta)


def test_sampler(golden: Golden) -> None:
    """Sampler outputs, timesteps, network inputs and gradients at 1, 2 and 4 steps."""
    expected, inputs = golden.tensors("sampler"), golden.tensors("inputs")
    prompts = golden.entry("sampler")["prompts"]
    module = SiDLSG(str(golden.path("tiny_sd")))
    load(golden, "weights_g", module.generator)
    condition = module.teacher.encode_prompts(prompts)
    for steps in (1, 2, 4):
        seen: list[tuple[Tensor, Tensor]] = []
        hook = module.generator.register_forward_pre_hook(
            lambda _, args, named: seen.append((args[0].detach(), named["timestep"])),  # noqa: B023
            with_kwargs=True,
        )
        noises = [inputs["phase1.z"], *(inputs[f"phase1.extra{i}"] for i in range(1, steps))]
        x_g = module.teacher.sample(module.generator, condition, noises, module.t_init)
        hook.remove()
        assert error(x_g, expected[f"train{steps}.x_g"]) < OUTPUT
        assert error(x_g, expected[f"eval{steps}.latents"]) < OUTPUT
        x_t, t = (torch.stack(values) for values in zip(*seen, strict=True))
        assert torch.equal(t, expected[f"train{steps}.timesteps"])
        assert t[:, 0].tolist() == module.teacher.schedule.generator_times(625, steps)
        assert error(x_t, expected[f"train{steps}.unet_inputs"]) < OUTPUT
        module.generator.zero_grad()
        (x_g * expected["w"]).sum().backward()
        gradients = [p.grad for p in module.generator.parameters()]
        check_fingerprint(gradients, expected[f"train{steps}.grad_fingerprint"], GRADIENT)
        for name, parameter in module.generator.named_parameters():
            if (full := expected.get(f"train{steps}.grad.{name}")) is not None:
                assert error(parameter.grad, full) < GRADIENT, name


def test_images(golden: Golden) -> None:
    """Decoding with its 8-bit rounding, and seeds."""
    expected = golden.tensors("sampler")
    teacher = SiDLSG(str(golden.path("tiny_sd"))).teacher
    images = teacher.decode(expected["eval1.latents"])
    assert error(images, expected["eval1.images"]) < 1e-5
    grid = expected["eval1.grid_uint8"]
    assert (to_uint8(images).int() - grid.int()).abs().max() <= 1
    assert (to_uint8(images) != grid).float().mean() < 1e-3
    (z,) = seeded_noises([0, 1, 2, 3, 668], (4, 8, 8))
    assert torch.equal(z, expected["seeded_z"])


def test_schedule(golden: Golden) -> None:
    expected = golden.tensors("schedule")
    t, x_t, output = expected["t"], expected["x_t"], expected["model_output"]
    for prediction_type, name in (("epsilon", "eps"), ("v_prediction", "v")):
        schedule = DiscreteSchedule.from_alphas_cumprod(
            expected["alphas_cumprod"],
            prediction_type,  # type: ignore[arg-type]
        )
        assert error(schedule.add_noise(expected["x0"], expected["eps"], t), x_t) < 1e-6
        assert error(schedule.x0(output, x_t, t), expected[f"x0_from_{name}"]) < 1e-6
    velocity = schedule.velocity(expected["x0"], expected["eps"], t)
    assert error(velocity, expected["velocity"]) < 1e-6
    weight = schedule.error_weight(t)
    assert error(weight, expected["snr"] / (expected["snr"] + 1)) < 1e-6
    teacher = SiDLSG(str(golden.path("tiny_sd"))).teacher
    assert torch.equal(teacher.schedule.alphas, expected["alphas_cumprod"].sqrt())


def test_text(golden: Golden) -> None:
    expected, texts = golden.tensors("text"), golden.entry("text")["texts"]
    teacher = SiDLSG(str(golden.path("tiny_sd"))).teacher
    tokens = teacher.text.tokenizer(
        texts, padding="max_length", truncation=True, return_tensors="pt"
    )
    assert torch.equal(tokens.input_ids, expected["input_ids"])
    embeddings = expected["embeddings"]
    encoded = teacher.encode_prompts(texts[: len(embeddings)])["encoder_hidden_states"]
    assert error(encoded, embeddings) < OUTPUT
    null = teacher.null_condition()["encoder_hidden_states"]
    assert error(null[0], embeddings[texts.index("")]) < OUTPUT
