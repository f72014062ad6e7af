"""Weights are loaded straight in their dtype, one at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from sid_lsg.files.loading import load_network
from sid_lsg.files.sources import locate
from sid_lsg.files.weight_by_weight import load_weight_by_weight
from sid_lsg.files.weight_files import Unusable
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters, InitialWeights, Memory
from sid_lsg.teachers.precision import backbone, linear_layers
from sid_lsg.training.module import SiDLSG
from tests.helpers.memory import peak

NETWORKS = [(UNet2DConditionModel, "unet"), (SD3Transformer2DModel, "transformer")]
FILE = "diffusion_pytorch_model.safetensors"
BOTH = Adapters(LoRA(2), LoRA(2))
HALF = Memory(frozen_precision="bf16")


def loaded(kind: Any, folder: Path, subfolder: str) -> Any:
    return load_weight_by_weight(
        kind, locate(str(folder)), subfolder, torch.bfloat16, linear_layers
    )


@pytest.fixture(params=NETWORKS, ids=lambda one: one[1])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path, str]:
    """Save a network with random weights; return its class, folder and subfolder."""
    kind, name = request.param
    config = {
        "unet": {
            "sample_size": 8, "block_out_channels": (8, 8), "cross_attention_dim": 8,
            "norm_num_groups": 4, "attention_head_dim": 2, "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        "transformer": {
            "sample_size": 8, "num_layers": 2, "attention_head_dim": 4, "num_attention_heads": 2,
            "joint_attention_dim": 8, "caption_projection_dim": 8, "pooled_projection_dim": 8,
            "pos_embed_max_size": 8,
        },
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(**config[name]).save_pretrained(tmp_path / name)
    return kind, tmp_path, name


@pytest.mark.parametrize("shards", [1, 3])
def test_linear_weights_are_rounded_and_others_kept(
    folder: tuple[Any, Path, str], shards: int
) -> None:
    kind, root, name = folder
    whole = load_network(kind, root, subfolder=name)
    if shards > 1:
        whole.save_pretrained(root / name, max_shard_size="10KB")
        (root / name / FILE).unlink(missing_ok=True)
        assert len([*(root / name).glob("*.safetensors")]) > 1
    torch.manual_seed(3)
    state = torch.get_rng_state()
    network = loaded(kind, root, name)
    assert torch.equal(torch.get_rng_state(), state)
    own = {id(p) for layer in linear_layers(network) for p in layer.parameters(recurse=False)}
    assert [*network.state_dict()] == [*whole.state_dict()]
    for key, p in network.named_parameters():
        expected = whole.get_parameter(key).bfloat16() if id(p) in own else whole.get_parameter(key)
        assert torch.equal(p, expected), key
        assert p.dtype == expected.dtype
    for key, value in network.named_buffers():
        assert torch.equal(value, whole.get_buffer(key)), key
    configs = [dict(net.config) | {"_name_or_path": ""} for net in (network, whole)]
    assert configs[0] == configs[1]
    assert not network.training
    assert torch.nn.Linear(4, 4).weight.abs().max() > 0  # layers draw their weights again


def test_unusable_files_are_rejected(folder: tuple[Any, Path, str]) -> None:
    kind, root, name = folder
    file = root / name / FILE
    weights = load_file(file)
    first = sorted(weights)[0]

    def refused(changed: dict[str, torch.Tensor], message: str) -> None:
        save_file(changed, file)
        with pytest.raises(Unusable, match=message):
            loaded(kind, root, name)

    refused({k: v for k, v in weights.items() if k != first}, f"its weights lack {first}")
    refused(weights | {"extra": torch.zeros(1)}, "weight extra has no place")
    refused(weights | {first: torch.zeros(3, 3)}, f"weight {first} is .3, 3. in the file")
    refused(weights | {first: torch.full_like(weights[first], torch.nan)}, "not finite")
    file.unlink()
    with pytest.raises(Unusable, match="it has no weight files"):
        loaded(kind, root, name)
    config = json.loads((root / name / "config.json").read_text())
    (root / name / "config.json").write_text(json.dumps(config | {"_class_name": "Other"}))
    with pytest.raises(Unusable, match="is of a Other"):
        loaded(kind, root, name)


@pytest.mark.parametrize("source", [None, "unet"])
@pytest.mark.slow
def test_the_base_of_adapters_is_loaded_straight(
    small_sd: str, source: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a base that is loaded in float32 and rounded; not if a network trains all weights."""
    calls: list[Any] = []

    def counted(*args: Any) -> Any:
        calls.append(args[3])
        return load_weight_by_weight(*args)

    monkeypatch.setattr("sid_lsg.teachers.assembled.load_weight_by_weight", counted)
    init = InitialWeights(generator=f"{small_sd}/{source}") if source else InitialWeights()
    module = SiDLSG(small_sd, lora=BOTH, memory=HALF, init=init)
    assert calls == [torch.bfloat16] * (2 if source else 1)
    calls.clear()
    SiDLSG(small_sd, lora=Adapters(LoRA(2)), memory=HALF)
    SiDLSG(small_sd, lora=BOTH)
    assert calls == []
    whole = SiDLSG(small_sd, lora=BOTH).teacher.network.state_dict()
    for network in (module.teacher.network, backbone(module.generator)):
        for name, value in network.state_dict().items():
            assert torch.equal(value, whole[name].to(value.dtype)), name
        assert next(linear_layers(network)).weight.dtype == torch.bfloat16


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_loading_takes_no_second_copy(tmp_path: Path, stored: torch.dtype) -> None:
    """Peak anonymous memory, which excludes the mapped files, is at most 1.2 x the weights."""
    width, blocks = 512, 24
    network = SD3Transformer2DModel(
        sample_size=8, num_layers=blocks, attention_head_dim=64, num_attention_heads=width // 64,
        joint_attention_dim=8, caption_projection_dim=width, pooled_projection_dim=8,
        pos_embed_max_size=8,
    )  # fmt: skip
    network.to(stored).save_pretrained(tmp_path / "transformer", max_shard_size="100MB")
    del network
    networks: list[torch.nn.Module] = []
    most = peak(lambda: networks.append(loaded(SD3Transformer2DModel, tmp_path, "transformer")))
    (found,) = networks
    size = sum(p.nbytes for p in found.parameters())
    assert size > 2e8
    assert most < 1.2 * size
    if stored == torch.bfloat16:
        assert most < 0.3 * size  # the file's pages
