"""The generator as an ONNX graph: onnxruntime gives PyTorch's images for any batch size."""

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sid_lsg.export.graph
from sid_lsg.commands.export import export
from sid_lsg.export.card import write_card
from sid_lsg.export.facts import facts_of
from sid_lsg.export.graph import GRAPH, Generator, check_graph, run_graph, save_graph
from sid_lsg.generation.trained import Trained
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.sampling import seeded_noises
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers import forked
from tests.helpers.alone import alone
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

T_INIT, NUM_STEPS = 625, 2
PROMPTS = ["a red cat", "", "two dogs " * 60]  # the last is truncated


def small(tiny_sd: str, prediction_type: str = "epsilon") -> StableDiffusion:
    """Build a Stable Diffusion with one level, since tracing takes long for each layer."""
    tokenizer = CLIPTokenizer.from_pretrained(f"{tiny_sd}/tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4,
            layers_per_block=1,
            block_out_channels=(8,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction_type,
    )
    return StableDiffusion(unet, vae, text, tokenizer, scheduler)


@pytest.fixture(scope="module")
def teacher(tiny_sd: str) -> StableDiffusion:
    return small(tiny_sd)


def export_small(tiny_sd: str, folder: Path) -> None:
    save_graph(small(tiny_sd), folder, T_INIT, NUM_STEPS)


@pytest.fixture(scope="module")
def folder(teacher: StableDiffusion, tiny_sd: str, kept_files: Path) -> Path:
    """Export in two steps in a process that prints nothing, and write the card.

    The first worker that needs the folder makes it, since that takes half a minute.
    """
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}  # as in cli.py
    with alone(kept_files.with_name("graph")) as work:
        folder = work / "onnx"
        if not folder.exists():
            jobs = [((tiny_sd, work / "new"), quiet)]
            assert forked.all_end_well(export_small, jobs, work, seconds=600) == ""
            write_card(work / "new", facts_of(teacher, T_INIT, NUM_STEPS, format="onnx"))
            (work / "new").rename(folder)
    return folder


def noise(teacher: StableDiffusion, seeds: range, num_steps: int) -> Tensor:
    return torch.stack(seeded_noises(seeds, teacher.latent_shape, num_steps), dim=1)


@pytest.mark.parametrize("batch", [1, 3, 70])
def test_images_equal_pytorchs_for_any_batch(
    teacher: StableDiffusion, folder: Path, batch: int
) -> None:
    prompts, seeds = [PROMPTS[i % 3] for i in range(batch)], range(batch)
    given = {
        "noise": noise(teacher, seeds, NUM_STEPS).numpy(),
        "input_ids": teacher.tokenize(prompts)["input_ids"].numpy(),
    }
    (images,) = onnxruntime.InferenceSession(folder / GRAPH).run(None, given)
    latents = teacher.generate(teacher.network, prompts, seeds, T_INIT, NUM_STEPS)
    ours = teacher.decode(latents)
    assert images.dtype == np.float32
    assert np.abs(images - ours.numpy()).max() < 1e-3
    assert ours.std() > 0.01


def test_inputs_are_named_and_the_batch_is_dynamic(folder: Path) -> None:
    session = onnxruntime.InferenceSession(folder / GRAPH)
    assert {i.name: (i.shape, i.type) for i in session.get_inputs()} == {
        "noise": (["batch", NUM_STEPS, 4, 4, 4], "tensor(float)"),
        "input_ids": (["batch", 77], "tensor(int64)"),
    }
    (output,) = session.get_outputs()
    assert (output.name, output.shape, output.type) == (
        "image",
        ["batch", 3, 8, 8],
        "tensor(float)",
    )


def test_weights_are_stored_once_beside_the_graph(teacher: StableDiffusion, folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        GRAPH, f"{GRAPH}.data", "README.md", "tokenizer",
    }  # fmt: skip
    # The VAE's encoder is not needed.
    parts = (teacher.network, teacher.text, teacher.vae.decoder, teacher.vae.post_quant_conv)
    weights = sum(p.numel() * 4 for part in parts for p in part.parameters())
    assert 0.8 * weights <= (folder / f"{GRAPH}.data").stat().st_size < 1.5 * weights


def test_no_exported_file_names_a_local_folder(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for name in (str(REPOSITORY), sys.prefix, str(folder.parent)):
                assert name.encode() not in content, (path, name)


def test_the_cards_snippet_needs_no_pytorch(
    teacher: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("path/to/this/folder", str(folder))
    code = code.replace('["a lighthouse at dawn"]', repr(PROMPTS))
    code += f"\nnp.savez({str(tmp_path / 'found.npz')!r}, ids=input_ids, noise=noise, got=pixels)"
    code += "\nimport sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)

    found = np.load(tmp_path / "found.npz")
    assert np.array_equal(found["ids"], teacher.tokenize(PROMPTS)["input_ids"].numpy())
    with torch.no_grad():
        ours = Generator(teacher, T_INIT, NUM_STEPS)(
            *map(torch.from_numpy, (found["noise"], found["ids"]))
        )
    expected = ((ours + 1) * 127.5).round().clip(0, 255).numpy()
    assert np.abs(found["got"] - expected).max() <= 1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
def test_the_traced_module_equals_the_sampler(
    tiny_sd: str, prediction_type: str, num_steps: int
) -> None:
    teacher = small(tiny_sd, prediction_type)
    given = noise(teacher, range(3), num_steps)
    given = given if num_steps > 1 else given[:, 0]
    with torch.no_grad():
        images = Generator(teacher, T_INIT, num_steps)(
            given, teacher.tokenize(PROMPTS)["input_ids"]
        )
    latents = teacher.generate(teacher.network, PROMPTS, range(3), T_INIT, num_steps)
    torch.testing.assert_close(images, teacher.decode(latents), rtol=0, atol=1e-5)


def test_a_graph_with_other_images_is_rejected(
    teacher: StableDiffusion, folder: Path, monkeypatch: Any
) -> None:
    assert 0 < check_graph(teacher, folder, T_INIT, NUM_STEPS) < 1e-4
    for error in (0.01, float("nan")):
        monkeypatch.setattr(
            sid_lsg.export.graph, "run_graph", lambda *given, e=error: run_graph(*given) + e
        )
        with pytest.raises(
            UsageError, match=f"onnxruntime's images differ .* by {error:.2g}, more"
        ):
            check_graph(teacher, folder, T_INIT, NUM_STEPS)


def test_the_command_writes_a_checked_graph(
    teacher: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    """Tracing is replaced by a copy of the fixture's graph."""
    record = {"config": {"model": {"teacher": "package:demo/fashion"}}}
    loaded = Trained(teacher, T_INIT, NUM_STEPS, record)
    opening = "sid_lsg.checkpoints.opening.require_checkpoint"
    monkeypatch.setattr(opening, lambda _: None)
    monkeypatch.setattr("sid_lsg.generation.trained.load_trained", lambda *_, **__: loaded)
    monkeypatch.setattr("sid_lsg.commands.export._history", lambda *_: {})
    monkeypatch.setattr("sid_lsg.commands.export._grid", lambda _: None)
    monkeypatch.setattr("sid_lsg.export.card.write_card", lambda *_: None)
    monkeypatch.setattr(
        sid_lsg.export.graph, "save_graph", lambda _, out, *__: shutil.copytree(folder, out)
    )
    with caplog.at_level(logging.INFO):
        export("run", str(tmp_path / "out"), format="onnx")
    assert (tmp_path / "out" / GRAPH).is_file()
    assert re.search(r"in onnxruntime differ from PyTorch's by at most \d", caplog.text)
