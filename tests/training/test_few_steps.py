"""Few-step training of Stable Diffusion: k, the fake score's steps, and the loss's scale."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.callbacks import Checkpoint
from sid_lsg.data.prompts import PromptBatch, PromptDataModule, PromptDataset
from sid_lsg.data.real_images import RealBatch
from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.draws import Phase, draw_steps
from sid_lsg.options.real_data import RealData
from sid_lsg.options.text import Text
from sid_lsg.options.training import Gradients
from sid_lsg.training.module import SiDLSG
from tests.helpers.comparison import relative, weights
from tests.helpers.modules import PROMPTS, part_from_teacher


class Counting(SiDLSG):
    """Record the samples of every phase, and the generator's evaluations."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.seen: list[tuple[str, Tensor]] = []
        self.evaluations: list[int] = []
        self.generator.register_forward_hook(lambda *_: self.evaluations.append(1))

    def fake_score_phase(self, inputs: Any) -> Any:
        return self._kept("fake", super().fake_score_phase(inputs))

    def generator_phase(self, inputs: Any) -> Any:
        return self._kept("generator", super().generator_phase(inputs))

    def _kept(self, name: str, output: Any) -> Any:
        self.seen.append((name, output.x_g.detach()))
        return output


OPTIONS = {"num_steps": 3, "step_training": "last", "fake_steps": 2, "module": Counting}


@pytest.mark.slow
def test_each_iteration_runs_k_steps_in_both_phases(fit: Callable[..., Any]) -> None:
    module = fit(steps=3, micro_batch_size=2, **OPTIONS)
    ks = [draw_steps(i, 3, module.seed) for i in range(3)]
    assert len(set(ks)) > 1
    # Two steps of the fake score and one of the generator, in two micro-batches each.
    assert sum(module.evaluations) == sum(ks) * 3 * 2
    assert [name for name, _ in module.seen] == (["fake"] * 4 + ["generator"] * 2) * 3
    samples = {tuple(x_g.flatten()[:8].tolist()) for _, x_g in module.seen}
    assert len(samples) == len(module.seen), "each step has samples of its own"


@pytest.mark.slow
def test_micro_batches_do_not_change_the_result(fit: Callable[..., Any]) -> None:
    whole, parts = (fit(steps=2, micro_batch_size=size, **OPTIONS) for size in (None, 1))
    for name in ("fake_score", "generator"):
        assert relative(*(weights(getattr(m, name)) for m in (parts, whole))) < 1e-4


@pytest.mark.slow
def test_a_resumed_run_is_bitwise_the_same(fit: Callable[..., Any], tmp_path: Path) -> None:
    whole = fit(steps=3, **OPTIONS)
    fit(steps=1, callbacks=[Checkpoint(every_n_steps=1)], **OPTIONS)
    path = str(tmp_path / "checkpoints/last.ckpt")
    again = fit(steps=3, callbacks=[Checkpoint(every_n_steps=1)], ckpt_path=path, **OPTIONS)
    for name in ("fake_score", "generator", "ema"):
        assert torch.equal(weights(getattr(again, name)), weights(getattr(whole, name)))


def test_every_step_of_the_fake_score_has_its_own_prompts() -> None:
    prompts = [f"prompt {i}" for i in range(24)]
    dataset = PromptDataset(prompts, 2, seed=0, fake_steps=3)
    seen = []
    for iteration in range(3):
        batch = dataset[iteration]
        assert (len(batch.fake), len(batch.generator)) == (6, 2)
        parts = [batch.of_fake_step(step).fake for step in range(3)]
        assert [prompt for part in parts for prompt in part] == batch.fake
        seen += batch.fake + batch.generator
    assert sorted(seen) == sorted(prompts), "each prompt once per pass"
    ranks = [PromptDataset(prompts, 2, 0, rank, 2, fake_steps=3)[1] for rank in (0, 1)]
    whole = dataset[1]
    for step in range(3):
        shares = [rank.of_fake_step(step).fake for rank in ranks]
        assert shares[0] + shares[1] == whole.of_fake_step(step).fake
    one = PromptDataset(prompts, 2, seed=0)[1]
    assert one.of_fake_step(0)._replace(fake_step=0) == one


def test_the_scale_multiplies_gradients_but_not_the_logged_loss(small_sd: str) -> None:
    found = []
    for scale in (1.0, 100.0):
        module = SiDLSG(small_sd, gradients=Gradients(generator_scale=scale))
        part_from_teacher(module.fake_score)
        inputs = module.phase_inputs(Phase.GENERATOR, PromptBatch(0, 0, PROMPTS, PROMPTS))
        output = module.generator_phase(inputs)
        output.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in module.generator.parameters()])
        found.append((output.losses.detach(), gradients))
    assert torch.equal(found[0][0], found[1][0])
    assert relative(found[1][1], 100 * found[0][1]) < 1e-5


def test_text_encoders_in_bfloat16_stay_apart(small_sd: str) -> None:
    module = SiDLSG(small_sd, text=Text(precision="bf16", device="cpu"))
    teacher = module.teacher
    (part,) = teacher.text_parts.values()
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    teacher.to("meta")
    assert {p.device.type for p in part.parameters()} == {"cpu"}
    assert {p.device.type for p in teacher.network.parameters()} == {"meta"}
    plain = SiDLSG(small_sd).teacher.encode_prompts(PROMPTS)["encoder_hidden_states"]
    own = part(teacher.tokenize(PROMPTS)["input_ids"])
    assert relative(own.float(), plain) < 0.05


def test_rounded_text_encoders_are_exported_as_they_were(small_sd: str, tmp_path: Path) -> None:
    module = SiDLSG(small_sd, text=Text(precision="bf16"))
    save_pipeline(module.teacher, module.ema, tmp_path, module.t_init)
    file = "text_encoder/model.safetensors"
    ours, theirs = load_file(tmp_path / file), load_file(Path(small_sd, file))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("device", ["cpu", None])
def test_tokens_stay_with_text_encoders_on_the_cpu(
    small_sd: str, device: Literal["cpu"] | None
) -> None:
    module = SiDLSG(small_sd, text=Text(device=device))
    tokens = module.teacher.tokenize(PROMPTS)
    real = RealBatch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), PROMPTS, tokens)
    batch = PromptBatch(0, 0, PROMPTS, PROMPTS, tokens, tokens, real)
    data = PromptDataModule()
    data.trainer = SimpleNamespace(lightning_module=module)  # type: ignore[assignment]
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.real
    assert moved.real.images.is_meta
    found = (moved.fake_tokens, moved.generator_tokens, moved.real.tokens)
    assert {ids["input_ids"].device.type for ids in found} == {device or "meta"}


def test_text_and_real_images_are_not_encoded_in_float16(small_sd: str) -> None:
    module = SiDLSG(small_sd, real_data=RealData(generator_weight=0.01))
    images = torch.randint(256, (1, 3, 64, 64), dtype=torch.uint8)

    def encoded() -> list[Tensor]:
        assert module.discriminator
        tokens = module.teacher.tokenize(PROMPTS)
        features = module.teacher.condition_on(tokens)["encoder_hidden_states"]
        return [features, module.discriminator.encode(images)]

    with torch.autocast("cpu", torch.float16):
        half = encoded()
    assert all(map(torch.equal, half, encoded()))
    with torch.autocast("cpu", torch.bfloat16):
        assert not any(map(torch.equal, encoded(), half))


def test_a_length_needs_a_teacher_with_t5(small_sd: str) -> None:
    with pytest.raises(UsageError, match="--model.text.max_sequence_length is 77"):
        SiDLSG(small_sd, text=Text(max_sequence_length=77))
