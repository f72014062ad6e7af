"""LoRA files change the base weights as the adapters do, by every tool's own rule."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from sid_lsg.export.lora_file import adapters_of, lora_weights
from sid_lsg.export.original.models import ORIGINALS
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.lora import adapt
from sid_lsg.options.lora import LoRA
from tests.helpers.modules import merged
from tests.helpers.paths import GOLDEN_FLOW
from tests.helpers.tiny_families import FAMILIES

PIPELINES = GOLDEN_FLOW / "pipelines"
TARGETS = ["to_q", "to_v", "to_out.0", "add_k_proj"]  # not to_k: a joined layer with a gap


def adapted(folder: str, targets: list[str]) -> tuple[Any, Any]:
    """Return a pipeline and its network with random adapters whose scale is not 1."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    base = getattr(pipeline, "unet", None) or pipeline.transformer
    network = adapt(base, LoRA(rank=3, alpha=7, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, value in adapters(network).items():
        if ".lora_B." in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.1
    return pipeline, network


def targets_of(family: str) -> list[str]:
    return TARGETS if family in ("tiny_sd3", "tiny_flux") else TARGETS[:3]


def model_of(family: str) -> Any:
    names = {"tiny_sd": "stable-diffusion-1"}
    return ORIGINALS.get(names.get(family, family.removeprefix("tiny_")))


def folder_of(family: str, tiny_sd: str) -> str:
    return tiny_sd if family == "tiny_sd" else str(PIPELINES / family)


def applied(weights: dict[str, Tensor], base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Apply kohya's rule: W + (alpha / rank) up @ down, with rank the rows of down."""
    by_key = {f"lora_unet_{n.removesuffix('.weight').replace('.', '_')}": n for n in base}
    changed = dict(base)
    for key in {name.split(".")[0] for name in weights}:
        down, up = weights[f"{key}.lora_down.weight"], weights[f"{key}.lora_up.weight"]
        scale = weights[f"{key}.alpha"].item() / len(down)
        name = by_key[key]
        change = up.flatten(1).double() @ down.flatten(1).double() * scale
        changed[name] = (base[name].double() + change.view_as(base[name])).float()
    return changed


@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_flux"])
def test_kohyas_rule_gives_the_merged_weights(family: str, tiny_sd: str) -> None:
    pipeline, network = adapted(folder_of(family, tiny_sd), targets_of(family))
    weights = lora_weights(network, model_of(family), "kohya", "unet")
    expected = merged(network).state_dict()
    base = (getattr(pipeline, "unet", None) or pipeline.transformer).state_dict()
    if family != "tiny_sd":
        layout = model_of(family).layout(network.base.config)

        def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: layout.change(name, torch.cat([state[source] for source in sources]))
                for name, sources in layout.names(state).items()
            }

        base, expected = original(base), original(expected)
    changed = applied(weights, base)
    different = [name for name in base if not torch.equal(changed[name], base[name])]
    assert len(different) == len(weights) // 3
    for name, value in expected.items():
        torch.testing.assert_close(changed[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "comfyui"])
@pytest.mark.parametrize("family", ["tiny_sd", "tiny_sdxl", "tiny_sd3", "tiny_flux"])
@pytest.mark.slow
def test_diffusers_loads_the_file(family: str, layout: Any, tiny_sd: str, tmp_path: Path) -> None:
    if family in ("tiny_sd3", "tiny_flux") and layout == "kohya":
        pytest.skip("diffusers reads kohya's names only at FLUX's own width, and not SD3's")
    pipeline, network = adapted(folder_of(family, tiny_sd), targets_of(family))
    name = "unet" if hasattr(pipeline, "unet") else "transformer"
    weights = lora_weights(network, model_of(family), layout, name)
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, tmp_path / "l.safetensors"
    )
    fresh = DiffusionPipeline.from_pretrained(folder_of(family, tiny_sd))
    fresh.load_lora_weights(tmp_path, weight_name="l.safetensors")
    fresh.fuse_lora()
    fresh.unload_lora_weights()
    found = getattr(fresh, name).state_dict()
    for key, value in merged(network).state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)


def test_families_without_kohyas_names_are_refused() -> None:
    _, network = adapted(str(PIPELINES / "tiny_sana"), ["to_q"])
    with pytest.raises(UsageError, match=r"--layout kohya: this family has no names there"):
        lora_weights(network, None, "kohya", "transformer")
    assert lora_weights(network, None, "comfyui", "transformer")


def test_adapters_keep_their_rank_and_alpha(tiny_sd: str) -> None:
    _, network = adapted(tiny_sd, ["to_q"])
    found = adapters_of(network)
    assert {(len(one.down), one.up.shape[1], one.alpha) for one in found.values()} == {(3, 3, 7.0)}


def of_own_width(family: str) -> tuple[Any, Any]:
    """Return a family's pipeline class and network, with random adapters on no base weights.

    diffusers' converter of FLUX.1's names takes layers of the published width only.
    """
    folder = FAMILIES[family].folder
    index = json.loads((folder / "model_index.json").read_text())
    kind = getattr(diffusers, index["transformer"][1])
    config = kind.load_config(folder / "transformer")
    if family == "flux":
        config |= {"num_attention_heads": 24, "attention_head_dim": 128}
    with torch.device("meta"):
        base = kind.from_config(config)
    targets = ["to_q", "to_v"] if family == "z_image" else TARGETS
    network = adapt(base, LoRA(rank=3, alpha=7, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(2)
    drawn = {n: torch.randn(v.shape, generator=generator) for n, v in adapters(network).items()}
    network.load_state_dict(drawn, assign=True)
    return getattr(diffusers, index["_class_name"]), network


def changes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each layer's change of the weight in a file of diffusers' names."""
    layers = {key.removesuffix(".lora_A.weight") for key in weights if ".lora_A." in key}
    return {
        key: weights[f"{key}.lora_B.weight"].double() @ weights[f"{key}.lora_A.weight"].double()
        for key in layers
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "flux2", "qwen_image", "z_image"])
def test_diffusers_reads_kohyas_names_of_transformers(family: str) -> None:
    pipeline, network = of_own_width(family)
    model = ORIGINALS[family.replace("_", "-")]
    kohya, own = (
        lora_weights(network, model, layout, "transformer") for layout in ("kohya", "diffusers")
    )
    assert all(key.startswith("lora_unet_") for key in kohya)
    found, expected = changes(pipeline.lora_state_dict(kohya)), changes(own)
    assert expected.keys() <= found.keys()
    for key, change in found.items():
        torch.testing.assert_close(
            change, expected.get(key, torch.zeros_like(change)), rtol=1e-5, atol=1e-5
        )
