"""The adversarial term on real images: its numbers, the weights that it trains, its options."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sid_lsg.callbacks import Checkpoint
from sid_lsg.cli import main
from sid_lsg.commands.benchmark import benchmark
from sid_lsg.data.prompts import PromptBatch
from sid_lsg.data.real_images import RealImages
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.adversarial import adversarial_loss, discriminator_loss
from sid_lsg.method.draws import Phase
from sid_lsg.method.phases import PhaseInputs
from sid_lsg.networks.compilation import compile_blocks
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.lora import LoRA
from sid_lsg.options.real_data import RealData, check_real_data
from sid_lsg.options.training import Adapters, Compute, Memory
from sid_lsg.training.alternating import frozen
from sid_lsg.training.module import SiDLSG
from tests.helpers.comparison import relative, weights
from tests.helpers.modules import PROMPTS, Poisoned, part_from_teacher
from tests.helpers.paths import CONFIGS

TERM = RealData(fake_weight=30.0, generator_weight=0.1)


@pytest.fixture
def photographs(tmp_path: Path) -> str:
    """Write a folder of 7 images of several shapes, with one caption each."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    rows = []
    for n in range(7):
        name = f"{'more/' * (n % 2)}{n}.png"
        pixels = torch.randint(256, (20 + n, 24, 3), generator=torch.Generator().manual_seed(n))
        Image.fromarray(pixels.byte().numpy()).save(folder / name)
        rows.append(json.dumps({"file_name": name, "text": f"photograph {n}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows[::-1]))
    return str(folder)


def made(source: str, photographs: str, **options: Any) -> tuple[SiDLSG, PromptBatch]:
    """Return a module with different networks, and a batch of 4 with real images."""
    options = {"real_data": TERM, "guidance": Guidance(scale=2.0)} | options
    module = SiDLSG(source, **options)
    part_from_teacher(module.fake_score)
    size, tokenize = module.teacher.image_size, module.teacher.tokenize
    real = RealImages(photographs).batch(0, 4, 0, size, tokenize)
    return module, PromptBatch(0, 0, PROMPTS[:4], PROMPTS[:4], real=real)


def gradient(network: torch.nn.Module, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, [*network.parameters()])
    return torch.cat([g.flatten() for g in found])


# ---------------------------------------------------------------------- both phases


def encoded(module: SiDLSG, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Compute the fake score's encoder layer by layer, and average over channels."""
    unet: Any = module.fake_score
    time = unet.time_embedding(unet.time_proj(t))
    hidden = unet.conv_in(x_t)
    for block in unet.down_blocks:
        text = {"encoder_hidden_states": condition} if hasattr(block, "attentions") else {}
        hidden, _ = block(hidden, time, **text)
    return hidden.mean(1)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_both_phases_add_the_adversarial_term_to_the_loss(
    small_sd: str, photographs: str, scale: float
) -> None:
    module, batch = made(small_sd, photographs, guidance=Guidance(scale=scale), prompt_dropout=0.5)
    first, second = (module.phase_inputs(phase, batch) for phase in Phase)
    assert first.real is not None
    assert second.real is None
    with_term = module.fake_score_phase(first), module.generator_phase(second)
    term, module.discriminator = module.discriminator, None
    without = module.fake_score_phase(first), module.generator_phase(second)
    assert term is not None
    assert not without[0].numbers
    assert not without[1].numbers

    def logits(x_0: Tensor, inputs: Any) -> Tensor:
        x_t = module.teacher.schedule.add_noise(x_0, inputs.draws.eps, inputs.draws.t)
        return encoded(module, x_t, inputs.draws.t, inputs.condition["encoder_hidden_states"])

    vae: Any = module.teacher.vae
    pixels = first.real.images / 127.5 - 1
    x_0 = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    loss = discriminator_loss(logits(x_0, first.real), logits(with_term[0].x_g, first))
    close = torch.testing.assert_close
    close(with_term[0].losses, without[0].losses + 30.0 * loss)
    close(with_term[0].numbers["loss_adversarial_fake"], loss)
    close(with_term[0].numbers["logit_real"], logits(x_0, first.real).mean((1, 2)))
    loss = adversarial_loss(logits(with_term[1].x_g, second))
    per_latent = 0.1 * x_0[0].numel() * loss / without[1].weight
    close(with_term[1].losses, without[1].losses + per_latent)
    close(with_term[1].numbers["loss_adversarial_generator"], loss)


def test_phase_1_trains_the_encoder_and_phase_2_only_the_generator(
    small_sd: str, photographs: str
) -> None:
    module, batch = made(small_sd, photographs)
    first, second = (module.phase_inputs(phase, batch) for phase in Phase)

    def reached() -> set[str]:
        networks = {"fake": module.fake_score, "generator": module.generator, "": module.teacher}
        named = [(k, *p) for k, network in networks.items() for p in network.named_parameters()]
        found = {f"{k} {name.split('.')[0]}" for k, name, p in named if p.grad is not None}
        module.zero_grad()
        return found

    module.fake_score_phase(first).numbers["loss_adversarial_fake"].sum().backward()
    assert reached() == {"fake conv_in", "fake time_embedding", "fake down_blocks"}
    with frozen([*module.fake_score.parameters()]):
        module.generator_phase(second).numbers["loss_adversarial_generator"].sum().backward()
    whole = {name.split(".")[0] for name, _ in module.generator.named_parameters()}
    assert reached() == {f"generator {name}" for name in whole}


# ---------------------------------------------------------------------- training


def gradients_of(module: SiDLSG, batch: PromptBatch, size: int) -> list[Tensor]:
    """Return both phases' gradients, accumulated over micro-batches of the given size."""
    inputs = [module.phase_inputs(phase, batch) for phase in Phase]
    phases: list[tuple[Callable[[PhaseInputs], Any], torch.nn.Module]] = [
        (module.fake_score_phase, module.fake_score),
        (module.generator_phase, module.generator),
    ]
    return [
        sum(
            gradient(network, phase(part.select(slice(i, i + size))).loss)
            for i in range(0, 4, size)
        )
        for part, (phase, network) in zip(inputs, phases, strict=True)
    ]


def test_micro_batches_change_nothing(small_sd: str, photographs: str) -> None:
    module, batch = made(small_sd, photographs)
    module.double()  # makes 1e-6 a meaningful tolerance
    whole = gradients_of(module, batch, 4)
    for size in (1, 2):
        for found, expected in zip(gradients_of(module, batch, size), whole, strict=True):
            assert relative(found, expected) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"memory": Memory("lean")},
        {"memory": Memory(checkpointing=["fake_score", "generator", "teacher"])},
        {"compute": Compute(compile=True)},
    ],
    ids=["lean", "checkpointing", "compiled"],
)
def test_memory_and_compilation_options_change_nothing(
    small_sd: str, photographs: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sid_lsg.networks.compilation._BACKEND", "eager")
    plain, batch = made(small_sd, photographs)
    other, _ = made(small_sd, photographs, **options)
    if "compute" in options:
        compile_blocks(other.fake_score)
    found, expected = (gradients_of(module, batch, 4) for module in (other, plain))
    torch._dynamo.reset()
    for ours, theirs in zip(found, expected, strict=True):
        assert relative(ours, theirs) < (1e-5 if "compute" in options else 1e-30)


@pytest.mark.slow
def test_runs_are_logged_and_resume_bitwise(
    fit: Callable[..., SiDLSG],
    photographs: str,
    tmp_path: Path,
) -> None:
    def rows(name: str, **more: Any) -> list[dict[str, float]]:
        options = {"micro_batch_size": 2, "real_data": TERM, "real_images": photographs} | more
        logger = L.pytorch.loggers.CSVLogger(tmp_path / name, name="", version="")
        found[name] = fit(logger=logger, **options)
        head, *lines = (tmp_path / name / "metrics.csv").read_text().splitlines()
        return [
            dict(zip(head.split(","), map(float, line.split(",")), strict=True)) for line in lines
        ]

    found: dict[str, SiDLSG] = {}
    whole = rows("whole", steps=3, module=Poisoned, lora=Adapters(LoRA(2)))
    parts = ["loss_adversarial_fake", "loss_adversarial_generator", "logit_real", "logit_generated"]
    assert all(row.keys() >= set(parts) for row in whole)
    assert [row["skipped_samples"] for row in whole] == [0, 2, 0]
    options: dict[str, Any] = {"module": Poisoned, "lora": Adapters(LoRA(2))}
    rows("first", steps=2, callbacks=[Checkpoint(every_n_steps=1)], **options)
    path = str(tmp_path / "checkpoints/last.ckpt")
    resumed = rows("resumed", steps=3, ckpt_path=path, **options)
    assert resumed == whole[2:]
    for name, value in found["whole"].state_dict().items():
        assert torch.equal(value, found["resumed"].state_dict()[name]), name
    off = rows("off", steps=1, real_data=None, real_images=None)
    assert off[0].keys().isdisjoint(parts)
    assert not torch.equal(weights(found["off"].generator), weights(found["whole"].generator))


# ---------------------------------------------------------------------- real images


def test_images_come_once_per_epoch_cropped_with_their_captions(photographs: str) -> None:
    images = RealImages(photographs)
    whole = images.batch(0, 14, 3, (8, 6), None)
    assert whole.images.shape == (14, 3, 8, 6)
    assert whole.images.dtype == torch.uint8
    first, second = whole.captions[:7], whole.captions[7:]
    assert sorted(first) == sorted(second) == [f"photograph {n}" for n in range(7)]
    assert first != second
    assert images.batch(0, 14, 4, (8, 6), None).captions != whole.captions
    shares = [images.batch(n, 4, 3, (8, 6), None) for n in (0, 4, 8)]
    assert torch.equal(torch.cat([share.images for share in shares]), whole.images[:12])
    own = images.batch(whole.captions.index("photograph 4"), 1, 3, (24, 24), None)
    with Image.open(Path(photographs) / "4.png") as picture:
        assert torch.equal(own.images[0].permute(1, 2, 0), torch.tensor(np.array(picture)))


def test_captions_may_be_text_files_beside_the_images(photographs: str) -> None:
    (Path(photographs) / "metadata.jsonl").unlink()
    for path in Path(photographs).rglob("*.png"):
        path.with_suffix(".txt").write_text(f"picture {path.stem}\n")
    assert sorted(RealImages(photographs).captions) == [f"picture {n}" for n in range(7)]
    (Path(photographs) / "more/1.txt").write_text(" \n")
    with pytest.raises(UsageError, match=r"--data.real_images: '.*1.txt' is blank"):
        RealImages(photographs)


def spoil(folder: Path, name: str, content: str | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.jsonl", None, "has no captions: neither metadata.jsonl nor metadata.csv"),
        ("metadata.jsonl", "{", "metadata.jsonl, line 1: not JSON"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png"}',
            "has the columns file_name. Name the captions' column",
        ),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}', "no caption for 6 of 7 images"),
        ("6.png", None, "holds 7 captions and .* 6 images"),
        ("6.png", "no image", "6.png' cannot be read as an image"),
    ],
)
def test_unusable_folders_are_rejected(
    photographs: str, name: str, content: str | None, message: str
) -> None:
    spoil(Path(photographs), name, content)
    with pytest.raises(UsageError, match=f"--data.real_images: .*{message}"):
        RealImages(photographs)


def test_a_damaged_image_is_named_when_it_is_read(photographs: str) -> None:
    path = Path(photographs) / "6.png"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UsageError, match=r"--data.real_images: .*6.png' cannot be read"):
        RealImages(photographs).batch(0, 7, 0, (8, 8), None)
    with pytest.raises(UsageError, match=r"--data.real_images: there is no folder"):
        RealImages(f"{photographs}/none")


def test_a_damaged_image_in_a_worker_ends_the_run_with_one_message(
    small_sd: str, photographs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path(photographs).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:600])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    options = {
        "model.teacher": small_sd, "model.real_data.fake_weight": 1, "trainer.max_steps": 1,
        "data.prompts": prompts, "data.real_images": photographs, "data.num_workers": 1,
        "data.batch_size": 2, "trainer.accelerator": "cpu", "progress.refresh_rate": 0,
        "trainer.default_root_dir": tmp_path / "run", "image_grid.every_n_steps": 0,
    }  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main(["fit", *(f"--{name}={value}" for name, value in options.items())])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: --data.real_images: ")
    assert "Traceback" not in error


def test_the_term_needs_images_and_images_need_the_term(
    small_sd: str, photographs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_real_data(None, None)
    check_real_data(TERM, photographs)
    with pytest.raises(UsageError, match="but no loss uses them: add --model.real_data"):
        check_real_data(None, photographs)
    module, batch = made(small_sd, photographs)
    with pytest.raises(UsageError, match="--model.real_data needs real images"):
        module.phase_inputs(Phase.FAKE_SCORE, batch._replace(real=None))
    for weight, message in (("0.001", " needs real images: give a folder"), ("-1", ".generator_w")):
        arguments = ["--config", str(CONFIGS / "demo.yaml")]
        with pytest.raises(SystemExit) as end:
            main(["fit", *arguments, f"--model.real_data.generator_weight={weight}"])
        assert end.value.code == 2
        assert f"error: --model.real_data{message}" in capsys.readouterr().err
    with pytest.raises(UsageError, match="--model.real_data: `benchmark` has no real images"):
        benchmark(["--model.teacher", small_sd, "--model.real_data.fake_weight", "1"])
    for name in ("fake_weight", "generator_weight"):
        for value in (-1.0, float("nan")):
            with pytest.raises(UsageError, match=f"--model.real_data.{name} must be a finite"):
                RealData(**{name: value})
