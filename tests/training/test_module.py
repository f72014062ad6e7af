"""Which network each phase trains and on what data; no other option changes the result."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from sid_lsg.callbacks import Checkpoint
from sid_lsg.data.prompts import PromptBatch
from sid_lsg.data.real_images import RealBatch
from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.draws import Phase
from sid_lsg.method.phases import PhaseInputs
from sid_lsg.networks.memory import borrowed
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.lora import LoRA
from sid_lsg.options.real_data import RealData
from sid_lsg.options.training import EMA, Adapters, Gradients, Memory
from sid_lsg.teachers.precision import linear_layers
from sid_lsg.training.alternating import frozen
from sid_lsg.training.bad_samples import replace_bad
from sid_lsg.training.ema import update_ema
from sid_lsg.training.module import SiDLSG
from tests.helpers.comparison import relative, weights
from tests.helpers.modules import PROMPTS, Poisoned, part_from_teacher


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-4)


class Phases(SiDLSG):
    """Record all three networks at each optimizer step, and the gradients."""

    def on_fit_start(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def optimizer_networks(self) -> dict[str, torch.nn.Module]:
        return {
            "teacher": self.teacher,
            "fake_score": self.fake_score,
            "generator": self.generator,
            "ema": self.ema,
        }

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        self.seen.append({n: weights(m).clone() for n, m in self.optimizer_networks().items()})
        for name, network in (("fake_score", self.fake_score), ("generator", self.generator)):
            if optimizer.param_groups[0]["params"][0] is next(network.parameters()):
                self.seen[-1]["updates"] = torch.tensor(name == "generator")
        assert all(p.grad is None for p in self.teacher.parameters())


def test_each_phase_changes_only_its_network(fit: Callable[..., SiDLSG]) -> None:
    module = fit(steps=1, module=Phases)
    before_fake, before_generator = module.seen
    after = {n: weights(m) for n, m in module.optimizer_networks().items()}
    assert [bool(s["updates"]) for s in module.seen] == [False, True]

    def changed(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
        return {name for name in after if not torch.equal(first[name], second[name])}

    assert changed(before_fake, before_generator) == {"fake_score"}
    assert changed(before_generator, after) == {"generator", "ema"}
    # The first EMA equals the generator: beta is 0 before any image has been seen.
    assert torch.equal(after["ema"], after["generator"])


def test_gradients_reach_the_generator_through_both_frozen_networks(small_sd: str) -> None:
    """Cutting either network out of the graph changes the gradient; their weights get none."""
    module = SiDLSG(small_sd, guidance=Guidance(scale=2.0))
    part_from_teacher(module.fake_score)
    inputs = module.phase_inputs(Phase.GENERATOR, PromptBatch(0, 0, PROMPTS, PROMPTS))
    module.fake_score.requires_grad_(False)

    def gradient(cut: torch.nn.Module | None) -> Tensor:
        predict = module.teacher.predict

        def without(network: Any, x_t: Tensor, t: Tensor, condition: Any) -> Tensor:
            return predict(network, x_t.detach() if network is cut else x_t, t, condition)

        module.teacher.predict = without  # type: ignore[method-assign]
        module.generator.zero_grad()
        module.generator_phase(inputs).loss.backward()
        del module.teacher.predict
        return torch.cat([p.grad.flatten() for p in module.generator.parameters()])

    whole = gradient(None)
    for cut in (module.fake_score, module.teacher.network):
        assert relative(gradient(cut), whole) > 0.05
    for network in (module.fake_score, module.teacher):
        assert all(p.grad is None for p in network.parameters())


@pytest.mark.slow
def test_two_runs_are_bitwise_equal(fit: Callable[..., SiDLSG]) -> None:
    first, second = fit(steps=3), fit(steps=3)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    other = fit(steps=3, seed=1)
    assert not torch.equal(weights(first.generator), weights(other.generator))


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
@pytest.mark.slow
def test_micro_batches_change_nothing(fit: Callable[..., SiDLSG], micro_batch_size: int) -> None:
    """Use SGD: Adam with beta1 = 0 turns the rounding of a tiny gradient into a whole step."""
    both = {"optimizer_fake": sgd, "optimizer_generator": sgd}
    start = weights(fit(steps=0, batch_size=6).generator)
    whole = fit(steps=2, batch_size=6, **both)
    parts = fit(steps=2, batch_size=6, micro_batch_size=micro_batch_size, **both)
    for name in ("fake_score", "generator"):
        ours, theirs = weights(getattr(parts, name)), weights(getattr(whole, name))
        assert relative(ours, theirs) < 1e-5
        assert relative(ours - start, theirs - start) < 1e-3  # relative to the distance moved


class AllPoisoned(Poisoned):
    positions = (0, 1, 2, 3)


def test_a_bad_sample_is_skipped_and_counted(fit: Callable[..., SiDLSG], tmp_path: Path) -> None:
    logger = L.pytorch.loggers.CSVLogger(tmp_path / "logs", name="", version="")
    module = fit(steps=3, module=Poisoned, micro_batch_size=2, logger=logger)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    rows = [line.split(",") for line in (tmp_path / "logs/metrics.csv").read_text().splitlines()]
    column = rows[0].index("skipped_samples")
    assert [float(row[column]) for row in rows[1:]] == [0, 2, 0]
    assert [float(row[rows[0].index("step")]) for row in rows[1:]] == [1, 2, 3]


def test_a_batch_without_good_samples_changes_nothing(fit: Callable[..., SiDLSG]) -> None:
    before, after = fit(steps=1), fit(steps=2, module=AllPoisoned)
    for name in ("fake_score", "generator"):
        assert torch.equal(weights(getattr(before, name)), weights(getattr(after, name)))


@pytest.mark.slow
def test_logs_cover_the_whole_batch(fit: Callable[..., SiDLSG], tmp_path: Path) -> None:
    def rows(name: str, **options: Any) -> list[dict[str, str]]:
        logger = L.pytorch.loggers.CSVLogger(tmp_path / name, name="", version="")
        fit(steps=2, logger=logger, **options)
        with (tmp_path / name / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    whole, parts = rows("whole"), rows("parts", micro_batch_size=1)
    assert [float(row["images_seen"]) for row in whole] == [4, 8]
    for a, b in zip(whole, parts, strict=True):
        for key in ("loss_fake", "grad_norm_fake", "weight"):
            assert float(a[key]) == pytest.approx(float(b[key]), rel=1e-4)
        assert float(a["lr_fake"]) == pytest.approx(1e-4)


def test_updates_are_measured_only_when_they_are_logged(
    fit: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    class Measured(SiDLSG):
        """Set one of the generator's gradients to NaN; compare reports with all the weights."""

        def training_step(self, *arguments: Any) -> None:
            self.iteration = arguments[0].iteration
            self.trainer.log_every_n_steps = 2
            super().training_step(*arguments)

        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            parameters = optimizer.param_groups[0]["params"]
            if parameters[0] is next(self.generator.parameters()):
                parameters[0].grad.fill_(float("nan"))
                self.bad = parameters[0].numel() / sum(p.numel() for p in parameters)
            super().on_before_optimizer_step(optimizer)

        def update(self, inputs: Any, phase: Any, network: Any, *rest: Any) -> Any:
            before, self.bad = weights(network), 0.0
            update = super().update(inputs, phase, network, *rest)
            if self.iteration == 0:
                assert update.update_ratio.isnan()
                assert update.nonfinite_gradients.isnan()
                assert update.gradient_norm.isnan()
            else:
                ratio = relative(weights(network), before)
                assert float(update.update_ratio) == pytest.approx(ratio, rel=1e-4)
                assert float(update.nonfinite_gradients) == pytest.approx(self.bad, rel=1e-4)
                assert update.gradient_norm > 0
            return update

    logger = L.pytorch.loggers.CSVLogger(tmp_path / "logs", name="", version="")
    module = fit(steps=2, module=Measured, logger=logger)
    (row,) = csv.DictReader((tmp_path / "logs/metrics.csv").read_text().splitlines())
    assert float(row["nonfinite_gradients"]) == pytest.approx(module.bad, rel=1e-4)
    assert 0 < float(row["update_ratio_fake"]) < 0.1
    assert 0 < float(row["update_ratio_generator"]) < 0.1


@pytest.mark.slow
def test_prompt_dropout_follows_kappa_1_and_2(small_sd: str) -> None:
    """It applies only in phase 1, if kappa_1 or kappa_2 guides; kappa_4 does not count."""
    batch = PromptBatch(0, 0, ["a cat"] * 64, ["a cat"] * 64)
    for guidance, drops in (
        (Guidance("none"), False),
        (Guidance("long", scale=4.5), False),
        (Guidance("lsg"), True),
        (Guidance("none", train_fake=1.5), True),
        (Guidance("none", eval_fake=[1.5, 1.0]), True),
        (Guidance("none", eval_fake=[1.0, 1.5]), False),
    ):
        module = SiDLSG(small_sd, guidance=guidance, prompt_dropout=0.25)
        null = module.teacher.null_condition()["encoder_hidden_states"]
        for phase in Phase:
            inputs = module.phase_inputs(phase, batch)
            hidden = inputs.condition["encoder_hidden_states"]
            dropped = (hidden == null).flatten(1).all(1)
            expected = inputs.draws.u < 0.25 if drops and phase is Phase.FAKE_SCORE else False
            assert torch.equal(dropped, torch.zeros(64, dtype=torch.bool) | expected)
            assert bool(dropped.any()) == (drops and phase is Phase.FAKE_SCORE)


def test_generate_depends_only_on_prompt_and_seed(small_sd: str) -> None:
    module = SiDLSG(small_sd)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    together = module.generate(PROMPTS, range(len(PROMPTS)), num_steps=2)
    assert torch.equal(state, torch.get_rng_state())
    for seed, prompt in enumerate(PROMPTS):
        alone = module.generate([prompt], [seed], num_steps=2)
        assert relative(alone[0], together[seed]) < 1e-5


def test_a_generator_of_several_steps_trains(fit: Callable[..., SiDLSG]) -> None:
    module = fit(steps=1, num_steps=3)
    assert weights(module.generator).isfinite().all()
    assert module.generate(PROMPTS[:2], [0, 1]).shape == (2, 4, 8, 8)


def test_the_module_clips_gradients(fit: Callable[..., SiDLSG]) -> None:
    class Norms(SiDLSG):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            super().on_before_optimizer_step(optimizer)
            gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
            assert float(torch.nn.utils.get_total_norm(gradients)) <= 0.5 * (1 + 1e-5)
            assert float(self._norm) > 0.5  # the norm before clipping is logged

    fit(steps=1, module=Norms, gradients=Gradients(clip_val=0.5))


@pytest.mark.slow
def test_checkpoints_exclude_the_teacher_and_resume_bitwise(
    fit: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    whole = fit(steps=4)
    fit(steps=2, callbacks=[Checkpoint(every_n_steps=1)])
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {
        "fake_score", "generator", "ema",
    }  # fmt: skip
    resumed = fit(steps=4, ckpt_path=str(path))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_of_another_model_is_rejected(small_sd: str) -> None:
    module = SiDLSG(small_sd)
    state = module.state_dict()
    first = next(iter(state))
    with pytest.raises(UsageError, match=f"'{first}' is absent from the file"):
        module.load_state_dict({k: v for k, v in state.items() if k != first})
    with pytest.raises(UsageError, match="'extra'"):
        module.load_state_dict(state | {"extra": torch.zeros(1)})
    with pytest.raises(UsageError, match=r"is \[3\] in the file"):
        module.load_state_dict(state | {first: torch.zeros(3)})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("t_init", 0),
        ("t_init", 1001),
        ("tmin", -1),
        ("tmax", 20),
        ("tmax", 1001),
        ("num_steps", 0),
        ("num_steps", 626),
        ("prompt_dropout", 1.5),
        ("micro_batch_size", 0),
        ("micro_batch_size", -4),
        ("resolution", 60),
    ],
)
def test_values_out_of_range_are_rejected_by_name(small_sd: str, option: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"--model\.({option}|tmin)"):
        SiDLSG(small_sd, **{option: value})


@pytest.mark.slow
def test_bad_samples_are_counted_until_the_next_row_and_across_checkpoints(
    fit: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    class Sparse(Poisoned):
        """Poison iteration 1 and log every third iteration."""

        def training_step(self, *arguments: Any) -> None:
            self.trainer.log_every_n_steps = 3
            super().training_step(*arguments)

    def rows(name: str, **options: Any) -> list[float]:
        logger = L.pytorch.loggers.CSVLogger(tmp_path / name, name="", version="")
        fit(module=Sparse, logger=logger, **options)
        lines = csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines())
        return [float(row["skipped_samples"]) for row in lines]

    with pytest.warns(UserWarning, match="Iteration 2: the loss of 2 sample") as caught:
        assert rows("whole", steps=6) == [2, 0]
    assert sum("not finite" in str(warning.message) for warning in caught) == 1
    fit(steps=2, module=Sparse, callbacks=[Checkpoint(every_n_steps=1)])
    path = str(tmp_path / "checkpoints" / "last.ckpt")
    assert rows("resumed", steps=6, ckpt_path=path) == [2, 0]


def test_bad_samples_do_not_change_the_gradients_of_good_ones(small_sd: str) -> None:
    """Compare with the mean of the gradients of each good sample, computed separately."""
    module = SiDLSG(small_sd)
    part_from_teacher(module.fake_score)
    inputs = module.phase_inputs(Phase.GENERATOR, PromptBatch(0, 0, PROMPTS[:3], PROMPTS[:3]))
    good = torch.tensor([True, False, True])

    def gradient(chosen: PhaseInputs) -> Tensor:
        module.generator.zero_grad()
        module.generator_phase(chosen).loss.backward()
        return torch.cat([p.grad.flatten() for p in module.generator.parameters()])

    with frozen([*module.fake_score.parameters()]):
        alone = sum(gradient(inputs.select(slice(i, i + 1))) for i in (0, 2))
        inputs.draws.noises[0][1] = float("nan")
        replaced = replace_bad(inputs, good)
        assert relative(gradient(replaced), alone) < 1e-5
        nothing = gradient(replace_bad(inputs, ~good & False))
    assert torch.equal(nothing, torch.zeros_like(nothing))
    assert torch.equal(replaced.draws.noises[0][1], inputs.draws.noises[0][0])


def test_a_rank_without_good_samples_has_no_gradient_of_real_images(small_sd: str) -> None:
    """Neither of the images, nor of their prompts and noise, whatever was not finite."""
    module = SiDLSG(small_sd, real_data=RealData(generator_weight=0.01))
    prompts, size = PROMPTS[:2], module.teacher.image_size
    tokens = module.teacher.tokenize(prompts)
    real = RealBatch(torch.full((2, 3, *size), 200, dtype=torch.uint8), prompts, tokens)
    batch = PromptBatch(0, 0, prompts, prompts, real=real)
    inputs = module.phase_inputs(Phase.FAKE_SCORE, batch)
    assert inputs.real
    for value in (inputs.real.draws.eps, *inputs.real.condition.values()):
        value[:] = float("nan")
    none = torch.zeros(2, dtype=torch.bool)
    module.fake_score_phase(replace_bad(inputs, none)).loss.backward()
    gradients = torch.cat([p.grad.flatten() for p in module.fake_score.parameters()])
    assert torch.equal(gradients, torch.zeros_like(gradients))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.slow
def test_activation_checkpointing_changes_nothing(
    fit: Callable[..., SiDLSG], micro_batch_size: int | None
) -> None:
    calls = []

    class Counted(SiDLSG):
        """Count how often each network's first block is evaluated in a run."""

        def on_fit_start(self) -> None:
            networks = (self.fake_score, self.generator, self.teacher.network)
            for name, network in zip(("fake", "generator", "teacher"), networks, strict=True):
                network.down_blocks[0].resnets[0].register_forward_pre_hook(
                    lambda *_, name=name: calls.append(name)
                )

    options = {"steps": 2, "module": Counted, "micro_batch_size": micro_batch_size}
    plain = fit(**options)
    once = {name: calls.count(name) for name in ("fake", "generator", "teacher")}
    calls.clear()
    names = ["fake_score", "generator", "teacher"]
    checkpointed = fit(**options, memory=Memory(checkpointing=names))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, checkpointed.state_dict()[name]), name
    # Recomputed wherever gradients flow, so not for the samples of phase 1.
    again = {name: calls.count(name) / count for name, count in once.items()}
    assert again == {"fake": 2, "generator": 1.5, "teacher": 2}
    assert not any(m.training for m in checkpointed.modules() if isinstance(m, torch.nn.Dropout))


def test_a_frozen_network_may_be_stored_in_bf16(fit: Callable[..., SiDLSG]) -> None:
    both = {"optimizer_fake": sgd, "optimizer_generator": sgd, "steps": 2}
    whole, half = fit(**both), fit(**both, memory=Memory(frozen_precision="bf16"))
    own = [
        p for layer in linear_layers(half.teacher.network) for p in layer.parameters(recurse=False)
    ]
    stored = {p.data_ptr() for p in half.teacher.parameters() if p.dtype == torch.bfloat16}
    assert stored == {p.data_ptr() for p in own}
    assert len(stored) > 30
    assert half.teacher.schedule.alphas.dtype == torch.float32
    start = fit(steps=0)
    for name in ("fake_score", "generator", "ema"):
        assert all(p.dtype == torch.float32 for p in getattr(half, name).parameters())
        origin = weights(getattr(start, name))
        ours, theirs = (weights(getattr(module, name)) - origin for module in (half, whole))
        # The generator starts from the difference of two equal networks, which is mostly rounding.
        assert relative(ours, theirs) < (0.1 if name == "fake_score" else 0.5)
    assert half.generate(PROMPTS[:2], [0, 1]).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"memory": Memory("lean", ["fake_score", "generator", "teacher"])},
        {"lora": Adapters(LoRA(4), LoRA(4))},
    ],
)
@pytest.mark.slow
def test_a_bf16_teacher_changes_nothing_in_mixed_precision(
    fit: Callable[..., SiDLSG], options: dict[str, Any]
) -> None:
    options = options | {"precision": "bf16-mixed", "guidance": Guidance("lsg", 1.5)}
    memory = options.pop("memory", Memory())
    whole, half = (
        fit(**options, memory=replace(memory, frozen_precision=stored)) for stored in ("32", "bf16")
    )
    states = [module.state_dict() for module in (whole, half)]
    assert states[0].keys() == states[1].keys()
    start = fit(**options, memory=memory, steps=0).state_dict()
    assert not any(torch.equal(v, start[name]) for name, v in states[0].items() if "to_q" in name)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    # The same outside the Trainer's autocast, where the teacher is sampled.
    x_t, t = torch.randn(2, *half.teacher.latent_shape), torch.tensor([100, 900])
    inputs = (x_t, t, half.teacher.encode_prompts(PROMPTS[:2]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        mixed = whole.teacher.predict(whole.teacher.network, *inputs)
    with torch.no_grad():
        stored = half.teacher.predict(half.teacher.network, *inputs)
    assert torch.equal(stored, mixed)
    images = [m.sample_teacher(PROMPTS[:2], [0, 1], 3, 1.5) for m in (half, whole)]
    assert images[0].dtype == torch.float32
    assert 0 < relative(*images) < 0.05
    assert half.generate(PROMPTS[:2], [0, 1]).dtype == torch.float32


def test_a_bf16_teacher_does_not_change_the_export(small_sd: str, tmp_path: Path) -> None:
    for stored in ("32", "bf16"):
        module = SiDLSG(small_sd, memory=Memory(frozen_precision=stored))
        save_pipeline(module.teacher, module.ema, tmp_path / stored, module.t_init)
    files = [path.relative_to(tmp_path / "32") for path in (tmp_path / "32").rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "32" / file).read_bytes() == (tmp_path / "bf16" / file).read_bytes()


@pytest.mark.slow
def test_the_ema_may_be_kept_on_the_cpu(fit: Callable[..., SiDLSG]) -> None:
    plain, kept = fit(), fit(ema=EMA(device="cpu"))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, kept.state_dict()[name]), name
    network = torch.nn.Linear(2, 3)
    with borrowed(network, torch.device("cpu")) as same:
        assert same is network
    with borrowed(network, torch.device("meta")):
        assert all(p.is_meta for p in network.parameters())
        network.to_empty(device="cpu")  # nothing can come back from the meta device


@pytest.mark.gpu
def test_the_ema_on_the_cpu_equals_that_on_a_gpu(small_sd: str) -> None:
    made = [SiDLSG(small_sd, ema=EMA(device=where)).cuda() for where in (None, "cpu")]
    for module in made:
        module.on_fit_start()
        part_from_teacher(module.generator.cpu())
        update_ema([*module.ema.parameters()], [*module.generator.cuda().parameters()], 0.5)
    there, here = made
    assert next(here.ema.parameters()).device.type == "cpu"
    torch.testing.assert_close(weights(here.ema), weights(there.ema).cpu())
    images = [module.generate(PROMPTS[:2], [0, 1]) for module in made]
    torch.testing.assert_close(images[0], images[1], rtol=1e-3, atol=1e-3)
    assert next(here.ema.parameters()).device.type == "cpu"
