"""The workflow's sampler and noise levels give the generator's own images."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from sid_lsg.export.comfyui import differences, sigmas, workflow
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.choices import Noise
from sid_lsg.method.sampling import seeded_noises
from sid_lsg.teachers import families
from sid_lsg.teachers.base import Teacher
from sid_lsg.teachers.stable_diffusion import StableDiffusion
from tests.helpers.paths import GOLDEN_FLOW
from tests.helpers.tiny_families import FAMILIES as TINY

FAMILIES = ["sdxl", "sd3", "flux", "flux2", "qwen_image", "z_image"]
PROMPTS, SEEDS = ["a red cat", "two dogs"], [3, 1]

Denoiser = Callable[[Tensor, float], Tensor]


def comfyui_sample(
    nodes: dict[str, Any], denoise: Denoiser, noises: list[Tensor], flow: bool
) -> Tensor:
    """Run a workflow's sampler by its published definition, in ComfyUI's coordinates.

    Diffusion models: x = x_0 + sigma n. Flow matching: x = (1 - sigma) x_0 + sigma n.
    """

    def noised(x_0: Tensor, sigma: float, noise: Tensor) -> Tensor:
        return ((1 - sigma) * x_0 if flow else x_0) + sigma * noise

    levels = [float(level) for level in nodes["7"]["inputs"]["sigmas"].split(",")]
    sampler = nodes["6"]["inputs"]["sampler_name"]
    x = noised(torch.zeros_like(noises[0]), levels[0], noises[0])
    for i, (sigma, following) in enumerate(pairwise(levels)):
        x_0 = denoise(x, sigma)
        if sampler == "euler":
            x = x + (x - x_0) / sigma * (following - sigma)
        else:
            assert sampler == "lcm"
            x = noised(x_0, following, noises[i + 1]) if following > 0 else x_0
    return x


def comfyui_denoiser(teacher: Teacher, nodes: dict[str, Any]) -> Denoiser:
    """Return x_0 of a noisy latent as ComfyUI computes it, with the nearest timestep."""
    model = nodes[nodes["5"]["inputs"]["model"][0]]
    sampling = model["inputs"].get("sampling", "eps")  # without ModelSamplingDiscrete
    condition = teacher.encode_prompts(PROMPTS)
    if "flow" in teacher.schedule.prediction_type:

        def denoise_flow(x: Tensor, sigma: float) -> Tensor:
            t = torch.full((len(x),), sigma)
            return x - sigma * teacher.predict(teacher.network, x, t, condition)

        return denoise_flow
    abar = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).alphas_cumprod
    known = ((1 - abar) / abar).sqrt().log()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        t = (known - torch.tensor(sigma).log()).abs().argmin().expand(len(x))
        scale = (1 + sigma**2) ** 0.5
        output = teacher.predict(teacher.network, x / scale, t, condition)
        return x / scale**2 - output * sigma / scale if sampling != "eps" else x - sigma * output

    return denoise


@pytest.mark.parametrize("noise", ["fresh", "ddim"])
@pytest.mark.parametrize("num_steps", [1, 2, 4])
@pytest.mark.parametrize("family", ["tiny_sd", *FAMILIES])
@torch.no_grad()
@pytest.mark.slow
def test_the_workflow_samples_the_generator(
    family: str, num_steps: int, noise: Noise, tiny_sd: str
) -> None:
    teacher = families.load(tiny_sd if family == "tiny_sd" else str(TINY[family].folder))
    flow = family not in ("tiny_sd", "sdxl")
    t_init = 999 if flow else 625
    nodes = workflow("g.safetensors", teacher, t_init, num_steps, noise)
    noises = seeded_noises(SEEDS, teacher.latent_shape, num_steps)
    found = comfyui_sample(nodes, comfyui_denoiser(teacher, nodes), noises, flow)
    ours = teacher.generate(teacher.network, PROMPTS, SEEDS, t_init, num_steps, noise)
    assert (found - ours).norm() / ours.norm() < 1e-4


def predicting_v(folder: str | Path, root: Path) -> Teacher:
    """Load a copy of a model whose scheduler says that it predicts v."""
    copied = Path(shutil.copytree(folder, root / "v"))
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    return families.load(str(copied))


@pytest.mark.parametrize("family", ["tiny_sd", "sdxl"])
@torch.no_grad()
def test_the_workflow_tells_that_a_generator_predicts_v(
    family: str, tiny_sd: str, tmp_path: Path
) -> None:
    teacher = predicting_v(tiny_sd if family == "tiny_sd" else TINY[family].folder, tmp_path)
    nodes = workflow("g.safetensors", teacher, 625, 2, "fresh")
    joined(nodes)
    noises = seeded_noises(SEEDS, teacher.latent_shape, 2)
    found = comfyui_sample(nodes, comfyui_denoiser(teacher, nodes), noises, flow=False)
    ours = teacher.generate(teacher.network, PROMPTS, SEEDS, 625, 2)
    assert (found - ours).norm() / ours.norm() < 1e-4


def test_one_file_of_stable_diffusion_1_cannot_tell_that_it_predicts_v(
    tiny_sd: str, tmp_path: Path
) -> None:
    teacher = predicting_v(tiny_sd, tmp_path)
    (found,) = differences(teacher, "single-file", "mine.safetensors")
    assert found.startswith("--format single-file: this generator predicts v")
    assert "mine.yaml" in found
    assert "ModelSamplingDiscrete" in found
    assert not differences(teacher, "comfyui", "mine.safetensors")
    assert not differences(families.load(tiny_sd), "single-file", "mine.safetensors")
    other = predicting_v(TINY["sdxl"].folder, tmp_path / "other")
    assert not differences(other, "single-file", "mine.safetensors")


@pytest.mark.parametrize(("family", "tokens"), [("sd3", 77), ("flux", 256)])
def test_another_number_of_tokens_than_comfyuis_is_named(family: str, tokens: int) -> None:
    teacher = families.load(str(TINY[family].folder))
    own = teacher.max_sequence_length
    (found,) = differences(teacher, "comfyui", "mine.safetensors")
    assert f"ComfyUI gives {tokens} tokens of T5, and this generator reads {own}" in found
    assert f"--model.text.max_sequence_length {tokens} in the training" in found
    teacher.max_sequence_length = tokens
    assert not differences(teacher, "comfyui", "mine.safetensors")


def test_without_t5_comfyui_gives_none_of_its_tokens() -> None:
    teacher = families.load(str(TINY["sd3"].folder))
    teacher.missing_parts = ("text_encoder_3", "tokenizer_3")
    teacher.max_sequence_length = 77
    (found,) = differences(teacher, "single-file", "mine.safetensors")
    assert "ComfyUI gives no tokens of T5" in found
    teacher.max_sequence_length = 0
    assert not differences(teacher, "single-file", "mine.safetensors")


def test_flux_gets_its_guidance_from_a_node() -> None:
    teacher = families.load(str(GOLDEN_FLOW / "pipelines" / "tiny_flux"))
    nodes = workflow("g.safetensors", teacher, 999, 4, "fresh")
    assert nodes["11"]["inputs"] == {"conditioning": ["2", 0], "guidance": 1.0}
    assert nodes["5"]["inputs"]["conditioning"] == ["11", 0]


@pytest.mark.parametrize(
    ("family", "kind", "files", "latents"),
    [
        ("flux2", "flux2", ["qwen_3_4b", "flux2-vae"], "EmptyFlux2LatentImage"),
        ("qwen_image", "qwen_image", ["qwen_2.5_vl_7b", "qwen_image_vae"], "EmptySD3LatentImage"),
        ("z_image", "lumina2", ["qwen_3_4b", "ae"], "EmptySD3LatentImage"),
    ],
)
def test_a_network_alone_is_loaded_beside_the_published_parts(
    family: str, kind: str, files: list[str], latents: str
) -> None:
    nodes = workflow("g.safetensors", families.load(str(TINY[family].folder)), 999, 4, "fresh")
    loaders = {node["class_type"]: node["inputs"] for node in nodes.values()}
    assert loaders["UNETLoader"] == {"unet_name": "g.safetensors", "weight_dtype": "default"}
    names = [loaders["CLIPLoader"]["clip_name"], loaders["VAELoader"]["vae_name"]]
    assert names == [f"{name}.safetensors" for name in files]
    assert loaders["CLIPLoader"]["type"] == kind
    assert latents in loaders
    joined(nodes)


def joined(nodes: dict[str, Any]) -> None:
    """Check that every input from a node is of one that exists."""
    for node in nodes.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in nodes


def test_the_nodes_are_joined(tiny_sd: str) -> None:
    nodes = workflow("g.safetensors", StableDiffusion.from_pretrained(tiny_sd), 625, 2, "fresh")
    joined(nodes)
    assert nodes["1"]["inputs"] == {"ckpt_name": "g.safetensors"}
    assert nodes["3"]["inputs"] == {"width": 64, "height": 64, "batch_size": 1}


def test_what_comfyui_cannot_sample_is_refused(tiny_sd: str) -> None:
    teacher = StableDiffusion.from_pretrained(tiny_sd)
    make = partial(workflow, "g.safetensors")
    with pytest.raises(UsageError, match=r"--format comfyui: .* --model\.noise fixed"):
        make(teacher, 625, 2, "fixed")
    parts = teacher.network, teacher.vae, teacher.text.text_encoder, teacher.text.tokenizer
    other = StableDiffusion(*parts, DDPMScheduler(beta_schedule="squaredcos_cap_v2"))
    with pytest.raises(UsageError, match=r"--format comfyui: .* noise schedule"):
        sigmas(other, 625, 1)
