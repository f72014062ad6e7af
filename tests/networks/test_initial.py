"""Start runs from networks of other runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.adapted import adapters
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters, InitialWeights, Loading, Memory
from sid_lsg.teachers.precision import backbone
from sid_lsg.training.module import SiDLSG
from tests.helpers.modules import merged
from tests.helpers.paths import GOLDEN

PROMPTS = ["a red cat", "two dogs running", "a blue bird", "the moon"]
NAMES = ("fake_score", "generator")


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


def make(tiny_sd: str, **options: Any) -> SiDLSG:
    return SiDLSG(tiny_sd, optimizer_fake=sgd, optimizer_generator=sgd, **options)


@pytest.fixture(scope="module")
def other() -> dict[str, Tensor]:
    """Return weights that differ from the teacher's."""
    return load_file(GOLDEN / "weights_g.safetensors")


@pytest.fixture(scope="module")
def exported(
    tiny_sd: str, other: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a folder as a run exports it."""
    module, folder = SiDLSG(tiny_sd), tmp_path_factory.mktemp("run") / "generator"
    module.ema.load_state_dict(other)
    save_pipeline(module.teacher, module.ema, folder, module.t_init)
    return folder


def is_other(network: nn.Module, other: dict[str, Tensor]) -> bool:
    state = network.state_dict()
    assert state.keys() == other.keys()
    same = {torch.equal(value, other[name]) for name, value in state.items()}
    assert len(same) == 1 or len({*map(str, same)}) == 2
    return same == {True}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("subfolder", ["", "unet"])
def test_a_network_starts_from_a_folder(
    tiny_sd: str, exported: Path, other: dict[str, Tensor], name: str, subfolder: str
) -> None:
    module = make(tiny_sd, init=InitialWeights(**{name: str(exported / subfolder)}))
    for network in (*NAMES, "ema"):
        own = network == name or (network == "ema" and name == "generator")
        assert is_other(getattr(module, network), other) == own
    assert not is_other(module.teacher.network, other)
    assert all(p.requires_grad for p in getattr(module, name).parameters())
    assert not any(p.requires_grad for p in module.ema.parameters())
    assert not any(m.training for m in getattr(module, name).modules())
    weight = getattr(module, name).conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_weights_become_float32(
    tiny_sd: str, exported: Path, other: dict[str, Tensor], tmp_path: Path
) -> None:
    half = shutil.copytree(exported / "unet", tmp_path / "half")
    file = half / "diffusion_pytorch_model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file)
    network = make(tiny_sd, init=InitialWeights(generator=str(half))).generator
    assert is_other(network, {name: value.half().float() for name, value in other.items()})


def test_the_sample_size_follows_the_runs_resolution(
    tiny_sd: str, exported: Path, tmp_path: Path
) -> None:
    module = make(tiny_sd, init=InitialWeights(generator=str(exported)), resolution=32)
    save_pipeline(module.teacher, module.ema, tmp_path, module.t_init)
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["sample_size"] == 4


@pytest.fixture
def fit(tiny_sd: str, tmp_path: Path) -> Callable[..., SiDLSG]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def run(**options: Any) -> SiDLSG:
        module = make(tiny_sd, **options)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=2, max_epochs=-1, logger=False, log_every_n_steps=1,
            default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, PromptDataModule(str(prompts), batch_size=4, num_workers=0))
        return module

    return run


@pytest.mark.slow
def test_starting_from_the_teachers_folder_changes_nothing(
    fit: Callable[..., SiDLSG], tiny_sd: str
) -> None:
    plain, same = fit(), fit(init=InitialWeights(f"{tiny_sd}/unet", tiny_sd))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, same.state_dict()[name]), name


@pytest.mark.slow
def test_adapters_train_on_the_weights_of_a_folder(
    fit: Callable[..., SiDLSG], tiny_sd: str, exported: Path, other: dict[str, Tensor]
) -> None:
    init = InitialWeights(str(exported), str(exported))
    options = {"init": init, "lora": Adapters(LoRA(2), LoRA(2))}
    start = make(tiny_sd, **options)
    for network in (start.fake_score, start.generator, start.ema):
        assert is_other(merged(network), other)
    module = fit(**options)
    for network in (module.fake_score, module.generator, module.ema):
        frozen = dict(backbone(network).named_parameters())
        assert frozen.keys() == other.keys()
        assert all(torch.equal(p, other[name]) for name, p in frozen.items())
        assert not is_other(merged(network), other)
    # The EMA shares the generator's base; the fake score has its own.
    places = [
        {p.data_ptr() for p in of}
        for of in (
            backbone(module.generator).parameters(),
            backbone(module.ema).parameters(),
            backbone(module.fake_score).parameters(),
            module.teacher.network.parameters(),
        )
    ]
    assert places[0] == places[1]
    assert not places[0] & places[2]
    assert not (places[0] | places[2]) & places[3]
    half = make(tiny_sd, **options, memory=Memory(frozen_precision="bf16"))
    for network in (half.fake_score, half.generator, half.ema):
        assert {p.dtype for p in backbone(network).parameters() if p.dim() > 1} == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in adapters(network).values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_network_of_another_shape_is_rejected(
    tiny_sd: str, exported: Path, tmp_path: Path, name: str
) -> None:
    config = json.loads((exported / "unet" / "config.json").read_text())
    config |= {"in_channels": 9}
    make_unet(config, tmp_path / "wide")
    weight = r"'conv_in.weight' is \[\d+, 9, 3, 3\] in .*wide.* and \[\d+, 4, 3, 3\] in the teacher"
    with pytest.raises(UsageError, match=rf"--model.init.{name}: {weight}"):
        make(tiny_sd, init=InitialWeights(**{name: str(tmp_path / "wide")}))
    make_unet(config | {"in_channels": 4, "time_cond_proj_dim": 8}, tmp_path / "more")
    with pytest.raises(UsageError, match="'time_embedding.cond_proj.weight' .* and absent from"):
        make(tiny_sd, init=InitialWeights(**{name: str(tmp_path / "more")}))


@pytest.mark.parametrize(
    ("field", "value"), [("attention_head_dim", 8), ("norm_num_groups", 4), ("act_fn", "gelu")]
)
def test_a_network_that_computes_something_else_is_rejected(
    tiny_sd: str, exported: Path, tmp_path: Path, field: str, value: Any
) -> None:
    """Weights' shapes do not show these fields."""
    other = shutil.copytree(exported / "unet", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {field: value}))
    found = f"the config of .*other' has {field} {value!r}, and the teacher's {config[field]!r}"
    with pytest.raises(UsageError, match=f"--model.init.generator: {found}"):
        make(tiny_sd, init=InitialWeights(generator=str(other)))


def test_weights_that_are_not_finite_are_rejected(
    tiny_sd: str, exported: Path, other: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = shutil.copytree(exported / "unet", tmp_path / "broken")
    weights = other | {"conv_in.bias": torch.full_like(other["conv_in.bias"], torch.nan)}
    save_file(weights, broken / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match="--model.init.fake_score: .*conv_in.bias is not finite"):
        make(tiny_sd, init=InitialWeights(fake_score=str(broken)))


def make_unet(config: dict[str, Any], folder: Path) -> None:
    from diffusers import UNet2DConditionModel

    UNet2DConditionModel.from_config(config).save_pretrained(folder)


@pytest.mark.slow
def test_unusable_folders_are_rejected_by_name(
    tiny_sd: str, exported: Path, tmp_path: Path, other: dict[str, Tensor]
) -> None:
    def refused(source: str | Path, message: str) -> None:
        with pytest.raises(UsageError, match=f"--model.init.generator: {message}"):
            make(tiny_sd, init=InitialWeights(generator=str(source)))

    refused(tmp_path / "nowhere", "there is no folder .*nowhere")
    refused("nowhere", "there is no folder 'nowhere', and it is not a Hub id")
    # A run directory: the message names the folder in it.
    refused(exported.parent, rf"{str(exported.parent)!r} holds no unet/.*Give {str(exported)!r}")
    refused(tmp_path, f"{str(tmp_path)!r} holds no unet/ .*Give a diffusers folder")
    broken = shutil.copytree(exported, tmp_path / "broken")
    file = broken / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: value for name, value in other.items() if name != "conv_in.bias"}, file)
    refused(broken, "could not load the network .*its weights lack conv_in.bias")
    file.write_bytes(file.read_bytes()[:1000])
    refused(broken, "could not load the network of .*broken")
    file.unlink()
    torch.save(other, broken / "unet" / "diffusion_pytorch_model.bin")  # never unpickled
    refused(broken, "could not load the network of .*safetensors")


def test_another_prediction_type_is_rejected(tiny_sd: str, exported: Path) -> None:
    """The weights of epsilon- and v-prediction networks have the same shapes."""
    v = Loading(subfolders={"scheduler": "../tiny_sd_v/scheduler"})
    with pytest.raises(UsageError, match="predicts 'epsilon', and the teacher's 'v_prediction'"):
        make(tiny_sd, loading=v, init=InitialWeights(generator=str(exported)))
    # the folder states no prediction type
    make(tiny_sd, loading=v, init=InitialWeights(generator=str(exported / "unet")))
