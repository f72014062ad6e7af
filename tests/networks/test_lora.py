"""LoRA adapters on shared weights: training, checkpoints, errors and export to diffusers."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_lsg.callbacks import Checkpoint
from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.checkpoints.resume import check_resume
from sid_lsg.cli import main
from sid_lsg.data.prompts import PromptBatch, PromptDataModule
from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.draws import Phase
from sid_lsg.networks.adapted import Adapted, adapters
from sid_lsg.networks.lora import LORA_FILE, adapt, save_lora
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import EMA, Adapters, InitialWeights, Memory
from sid_lsg.teachers.precision import backbone
from sid_lsg.training.alternating import frozen
from sid_lsg.training.ema import update_ema
from sid_lsg.training.module import SiDLSG
from tests.helpers.modules import merged

PROMPTS = ["a red cat", "two dogs running", "a blue bird", "the moon"]
SEEDS = [5, 0, 2**40, 1]
ADAPTERS = Adapters(LoRA(4), LoRA(2, alpha=6.0))
BOTH = {"lora": ADAPTERS}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.0, 0.999))


def make(small_sd: str, **options: Any) -> SiDLSG:
    return SiDLSG(small_sd, **{"optimizer_fake": adam, "optimizer_generator": adam} | options)


def trainer_of(root: Path, steps: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, callbacks=[*callbacks], logger=False,
        log_every_n_steps=1, default_root_dir=root, enable_checkpointing=bool(callbacks),
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        **options,
    )  # fmt: skip


Fit = Callable[..., SiDLSG]


@pytest.fixture
def fit(small_sd: str, tmp_path: Path) -> Fit:
    """Return a function that trains adapters of the tiny pipeline for some iterations."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def run(
        steps: int = 2, save: bool = False, ckpt_path: str | None = None, **options: Any
    ) -> SiDLSG:
        module = make(small_sd, **BOTH | options)
        trainer = trainer_of(tmp_path, steps, *([Checkpoint(every_n_steps=1)] if save else []))
        data = PromptDataModule(str(prompts), batch_size=4, num_workers=0)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return module

    return run


def stir(network: nn.Module, seed: int = 0) -> nn.Module:
    """Set the adapters to values as after training, since B is initially zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in adapters(network).items():
            if ".lora_B." in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return network


def call(module: SiDLSG, network: nn.Module) -> Tensor:
    with torch.no_grad():
        return module.generate(PROMPTS, SEEDS, network=network)


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def places(tensors: Any) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors}


# ---------------------------------------------------------------------- start


@pytest.mark.slow
def test_networks_start_as_the_teacher_and_share_its_tensors(small_sd: str) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    plain = make(small_sd)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    module = make(small_sd, **BOTH)
    assert torch.equal(torch.get_rng_state(), after)  # adapters do not use the global random state
    own = places(module.teacher.network.parameters())
    images = call(plain, plain.ema)
    for network, rank in ((module.fake_score, 4), (module.generator, 2), (module.ema, 2)):
        assert torch.equal(call(module, network), images)
        assert places(backbone(network).parameters()) == own
        assert len(adapters(network)) == 48
        assert min(min(p.shape) for p in adapters(network).values()) == rank
        assert own.isdisjoint(places(network.parameters()))
        assert all(p.dtype == torch.float32 for p in network.parameters())
    for network in (module.fake_score, module.generator):
        assert {p for p in network.parameters() if p.requires_grad} == {*network.parameters()}
    assert not any(p.requires_grad for p in module.ema.parameters())
    assert places(module.ema.parameters()).isdisjoint(places(module.generator.parameters()))
    assert sum(m.training for m in module.generator.modules()) == 0
    again, other = make(small_sd, **BOTH), make(small_sd, **BOTH, seed=1)
    for name, value in module.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == (".lora_B." in name)
    equal = make(small_sd, lora=Adapters(LoRA(2), LoRA(2)))
    factors = [next(network.parameters()) for network in (equal.fake_score, equal.generator)]
    assert not torch.equal(*factors)


def test_without_adapters_all_weights_are_trained(small_sd: str) -> None:
    module = make(small_sd, lora=Adapters(LoRA(4)))
    assert backbone(module.generator) is module.generator
    assert adapters(module.generator) == {}
    assert merged(module.generator) is module.generator
    assert places(module.generator.parameters()).isdisjoint(places(module.teacher.parameters()))
    assert all(p.requires_grad for p in module.generator.parameters())


def test_moving_and_casting_keep_the_tensors_shared(small_sd: str) -> None:
    module = make(small_sd, **BOTH).double()
    own = places(module.teacher.network.parameters())
    for network in (module.fake_score, module.generator, module.ema):
        assert next(network.parameters()).dtype == torch.float64
        assert places(backbone(network).parameters()) == own


@pytest.mark.gpu
def test_moving_to_a_gpu_keeps_the_tensors_shared(small_sd: str) -> None:
    module = make(small_sd, **BOTH).cuda()
    own = places(module.teacher.network.parameters())
    for network in (module.fake_score, module.generator, module.ema):
        assert places(backbone(network).parameters()) == own
        assert all(p.is_cuda for p in network.parameters())


# ---------------------------------------------------------------------- gradients


def gradients(module: SiDLSG, phase: Phase, network: nn.Module) -> dict[str, Tensor]:
    inputs = module.phase_inputs(phase, PromptBatch(0, 0, PROMPTS, PROMPTS))
    if phase is Phase.FAKE_SCORE:
        module.fake_score_phase(inputs).loss.backward()
    else:
        with frozen([*module.fake_score.parameters()]):
            module.generator_phase(inputs).loss.backward()
    assert all(p.grad is None for p in module.teacher.parameters())
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["fake_score", "generator"])
@pytest.mark.slow
def test_gradients_are_those_of_the_merged_weights(small_sd: str, name: str) -> None:
    """W = W_0 + s B A, so dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW."""
    phase = Phase.GENERATOR if name == "generator" else Phase.FAKE_SCORE
    module, whole = make(small_sd, **BOTH), make(small_sd)
    for seed, network in enumerate(("fake_score", "generator")):
        stir(getattr(module, network), seed)
        plain = merged(getattr(module, network)).requires_grad_(True)
        setattr(whole, network, plain)
    ours = gradients(module, phase, getattr(module, name))
    theirs = gradients(whole, phase, getattr(whole, name))
    own, s = adapters(getattr(module, name)), 3.0 if name == "generator" else 1.0
    assert ours.keys() == own.keys()
    for key in (key for key in own if ".lora_A." in key):
        layer, other = key.split(".lora_A.")[0], key.replace(".lora_A.", ".lora_B.")
        whole_gradient = theirs[f"{layer}.weight"]
        assert relative(ours[key], s * own[other].T @ whole_gradient) < 1e-3, key
        assert relative(ours[other], s * whole_gradient @ own[key].T) < 1e-3, key


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.slow
def test_activation_checkpointing_changes_nothing(small_sd: str, phase: Phase) -> None:
    def made(**options: Any) -> dict[str, Tensor]:
        module = make(small_sd, **BOTH, **options)
        name = "generator" if phase is Phase.GENERATOR else "fake_score"
        for seed, network in enumerate((module.fake_score, module.generator)):
            stir(network, seed)
        return gradients(module, phase, getattr(module, name))

    plain = made()
    checkpointed = made(memory=Memory(checkpointing=["fake_score", "generator", "teacher"]))
    assert len(plain) == 48
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        assert value.abs().max() > 0
        assert torch.equal(value, checkpointed[name]), name


@pytest.mark.slow
def test_a_bf16_base_keeps_float32_adapters(small_sd: str, fit: Fit) -> None:
    half, whole = (
        make(small_sd, **BOTH, memory=Memory("fast", ["fake_score"], p)) for p in ("bf16", "32")
    )
    for module in (half, whole):
        stir(module.fake_score)
    ours, theirs = (gradients(m, Phase.FAKE_SCORE, m.fake_score) for m in (half, whole))
    assert all(value.dtype == torch.float32 for value in ours.values())
    together = [torch.cat([value.flatten() for value in g.values()]) for g in (ours, theirs)]
    assert 0 < relative(*together) < 0.1
    module = fit(memory=Memory(frozen_precision="bf16"))
    own = places(module.teacher.network.parameters())
    for network in (module.fake_score, module.generator, module.ema):
        assert places(backbone(network).parameters()) == own
        assert {p.dtype for p in backbone(network).parameters() if p.dim() > 1} == {torch.bfloat16}
        assert all(p.dtype == torch.float32 for p in network.parameters())
    assert merged(module.ema).dtype == torch.float32
    assert module.generate(PROMPTS, SEEDS).dtype == torch.float32


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("whole", ["generator", "fake_score", None])
@pytest.mark.slow
def test_training_changes_only_trainable_weights(
    small_sd: str, fit: Fit, whole: str | None
) -> None:
    options = {"lora": replace(ADAPTERS, **{whole: None})} if whole else {}
    start, module = make(small_sd, **BOTH | options), fit(**options)
    before = start.teacher.network.state_dict()
    for name, value in module.teacher.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(call(module, module.teacher.network), call(start, start.teacher.network))
    for name in ("fake_score", "generator", "ema"):
        network = getattr(module, name)
        pairs = zip(network.parameters(), getattr(start, name).parameters(), strict=True)
        assert all(not torch.equal(*pair) for pair in pairs)
        if isinstance(network, Adapted):
            assert network.base is module.teacher.network
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    for optimizer, network in zip(
        module.trainer.optimizers, (module.fake_score, module.generator), strict=True
    ):
        assert optimizer.param_groups[0]["params"] == [*network.parameters()]
        assert optimizer.state.keys() == {*network.parameters()}
        assert all(p.requires_grad for p in network.parameters())


def test_the_ema_covers_only_the_adapters(small_sd: str) -> None:
    module = make(small_sd, **BOTH)
    base = module.teacher.network
    old = [p.clone() for p in stir(module.ema, 1).parameters()]
    before = {name: (p.clone(), p._version) for name, p in base.named_parameters()}
    now = [*stir(module.generator).parameters()]
    update_ema([*module.ema.parameters()], now, 0.75)
    for average, start, end in zip(module.ema.parameters(), old, now, strict=True):
        torch.testing.assert_close(average, 0.75 * start + 0.25 * end)
    for name, p in base.named_parameters():
        assert torch.equal(p, before[name][0])
        assert p._version == before[name][1]


@pytest.mark.slow
def test_checkpoints_contain_only_adapters_and_resume_bitwise(fit: Fit, tmp_path: Path) -> None:
    whole = fit(4)
    fit(2, save=True)
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert len(saved["state_dict"]) == 3 * 48
    assert all(".lora_" in name for name in saved["state_dict"])
    assert [len(state["state"]) for state in saved["optimizer_states"]] == [48, 48]
    resumed = fit(4, ckpt_path=str(path))
    assert resumed.state_dict().keys() == saved["state_dict"].keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert torch.equal(call(whole, whole.ema), call(resumed, resumed.ema))


@pytest.mark.slow
def test_checkpoints_of_other_networks_are_rejected(
    fit: Fit, small_sd: str, tmp_path: Path
) -> None:
    fit(1, save=True)
    last, plain = (str(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("last", "plain"))
    os.rename(os.path.realpath(last), str(tmp_path / "adapters.ckpt"))
    fit(1, save=True, lora=Adapters())
    os.rename(os.path.realpath(last), plain)
    last = str(tmp_path / "adapters.ckpt")

    def refused(path: str, message: str, **options: Any) -> None:
        module = make(small_sd, **options)
        with pytest.raises(UsageError, match=message):
            check_resume(require_checkpoint(path), module)
        with pytest.raises(UsageError, match=message):
            module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])

    check_resume(require_checkpoint(last), make(small_sd, **BOTH))
    names = r"fake_score\.down_blocks\.0.*lora_A\.default\.weight"
    shapes = r"is \[4, 8\] in the file and \[3, 8\].*Give the --model.lora.fake_score of its"
    refused(last, f"'{names}' {shapes}", lora=replace(ADAPTERS, fake_score=LoRA(3)))
    few = r"'fake_score.*to_k.*absent from this run.*Give the --model.lora.fake_score"
    refused(last, few, lora=replace(ADAPTERS, fake_score=LoRA(4, targets=["to_q"])))
    refused(last, "adapters of 'fake_score', but all its weights.*--model.lora.fake_score")
    one = {"lora": Adapters(fake_score=LoRA(4))}
    refused(last, "adapters of 'generator', but all its weights.*--model.lora.generator", **one)
    refused(
        plain, "all weights of 'fake_score'.*--model.lora.fake_score trains only adapters", **BOTH
    )
    one = {"lora": Adapters(generator=LoRA(4))}
    refused(plain, "all weights of 'generator'.*--model.lora.generator trains only adapters", **one)
    with pytest.raises(UsageError, match="--model.lora.generator.alpha is 1 times .* 3 times"):
        fit(2, ckpt_path=last, lora=replace(ADAPTERS, generator=LoRA(2)))


@pytest.mark.slow
def test_adapters_of_other_base_weights_are_rejected(
    fit: Fit, small_sd: str, tmp_path: Path
) -> None:
    """Names and shapes are the same, so only the recorded fingerprint shows the difference."""
    teacher = make(small_sd).teacher
    with torch.no_grad():
        for p in teacher.network.parameters():
            p.mul_(1.1)
    save_pipeline(teacher, teacher.network, tmp_path / "base", 625)
    own = {"init": InitialWeights(generator=str(tmp_path / "base"))}
    fit(1, save=True, **own)
    path = str(tmp_path / "checkpoints" / "last.ckpt")
    message = "adapters of 'generator' .* other weights .*--model.init.generator"
    with pytest.raises(UsageError, match=message):
        check_resume(require_checkpoint(path), make(small_sd, **BOTH))
    with pytest.raises(UsageError, match=message):
        fit(2, ckpt_path=path)
    half = Memory(frozen_precision="bf16")
    check_resume(require_checkpoint(path), make(small_sd, **BOTH, **own, memory=half))
    fit(2, ckpt_path=path, **own)


# ---------------------------------------------------------------------- merging and saving


@pytest.fixture
def trained(tiny_sd: str) -> SiDLSG:
    """Return a module whose EMA is far from the teacher."""
    module = make(tiny_sd, **BOTH)
    stir(module.ema)
    assert relative(call(module, module.ema), call(module, module.teacher.network)) > 0.05
    return module


def test_merged_returns_a_plain_network_like_the_teacher(trained: SiDLSG) -> None:
    before = {name: p.clone() for name, p in trained.ema.named_parameters()}
    plain = merged(trained.ema)
    teacher = trained.teacher.network
    assert type(plain) is type(teacher)
    assert [*plain.state_dict()] == [*teacher.state_dict()]
    assert [type(m) for m in plain.modules()] == [type(m) for m in teacher.modules()]
    assert plain.config == teacher.config
    assert relative(call(trained, plain), call(trained, trained.ema)) < 1e-5
    # It shares no tensor with the module, and the module has not changed.
    own = places(p for net in (trained.ema, teacher) for p in net.parameters())
    assert own.isdisjoint(places(plain.parameters()))
    assert all(torch.equal(p, before[name]) for name, p in trained.ema.named_parameters())
    # The weights are W_0 + (alpha / r) B A, up to the rounding of one addition.
    key = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    a, b = (before[f"{key}.lora_{which}.default.weight"].double() for which in "AB")
    exact = teacher.state_dict()[f"{key}.weight"].double() + 3 * b @ a
    assert relative(plain.state_dict()[f"{key}.weight"], exact) < 1e-7


def pipeline_latents(pipeline: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    return pipeline(
        PROMPTS, num_inference_steps=1, guidance_scale=0, generator=noise, output_type="latent"
    ).images


def test_diffusers_loads_the_adapters_and_the_merged_export(
    trained: SiDLSG, tmp_path: Path
) -> None:
    ours = trained.generate(PROMPTS, SEEDS)
    save_pipeline(trained.teacher, merged(trained.ema), tmp_path / "merged", trained.t_init)
    save_pipeline(trained.teacher, trained.teacher.network, tmp_path / "teacher", trained.t_init)
    save_lora(trained.ema, "unet", tmp_path / "lora")
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [LORA_FILE]
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
    assert relative(pipeline_latents(pipeline), ours) < 1e-4
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "teacher")
    assert relative(pipeline_latents(pipeline), ours) > 0.05
    pipeline.load_lora_weights(tmp_path / "lora")
    assert relative(pipeline_latents(pipeline), ours) < 1e-4
    pipeline.fuse_lora()
    assert relative(pipeline_latents(pipeline), ours) < 1e-4


def test_adapters_of_convolutions_load_too(small_sd: str, tmp_path: Path) -> None:
    lora = LoRA(3, alpha=1.5, targets=["conv1", "proj_in", "to_v"])
    module = make(small_sd, lora=Adapters(generator=lora))
    ours = call(module, stir(module.ema))
    assert relative(call(module, merged(module.ema)), ours) < 1e-5
    save_pipeline(module.teacher, module.teacher.network, tmp_path / "teacher", module.t_init)
    save_lora(module.ema, "unet", tmp_path / "lora")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "teacher")
    assert relative(pipeline_latents(pipeline), ours) > 1e-3
    pipeline.load_lora_weights(tmp_path / "lora")
    assert relative(pipeline_latents(pipeline), ours) < 1e-4


def test_a_generator_is_rebuilt_from_a_checkpoint(trained: SiDLSG, tiny_sd: str) -> None:
    state = trained.state_dict()
    average = {name[4:]: value for name, value in state.items() if name.startswith("ema.")}
    fresh = make(tiny_sd)
    network = adapt(fresh.teacher.network, ADAPTERS.generator, seed=99)
    assert adapters(network).keys() == average.keys()
    network.load_state_dict(average, strict=False)
    assert torch.equal(call(fresh, network), call(trained, trained.ema))


# ---------------------------------------------------------------------- options


@pytest.mark.slow
def test_the_command_line_trains_exports_and_continues_adapters(
    small_sd: str, tmp_path: Path
) -> None:
    prompts, overlay, root = (tmp_path / name for name in ("prompts.txt", "lora.yaml", "run"))
    prompts.write_text("\n".join(PROMPTS))
    overlay.write_text("model:\n  lora:\n    fake_score:\n      rank: 3\n      targets: [to_q]\n")
    options = {
        "config": overlay, "model.teacher": small_sd, "model.lora.generator.rank": 2,
        "model.lora.generator.alpha": 6, "data.prompts": prompts, "data.batch_size": 4,
        "data.num_workers": 0, "data.num_heldout": 0, "trainer.accelerator": "cpu",
        "trainer.devices": 1, "trainer.default_root_dir": root, "progress.refresh_rate": 0,
        "image_grid.num_images": 2,
    }  # fmt: skip
    command = ["fit", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]  # noqa: E501  # fmt: skip
    main([*command, "--trainer.max_steps", "1"])
    main([*command, "--trainer.max_steps", "2", "--ckpt_path", "last"])
    model = yaml.safe_load((root / "config.yaml").read_text())["model"]
    attention = ["to_q", "to_k", "to_v", "to_out.0"]
    assert model["lora"]["generator"] == {"rank": 2, "alpha": 6.0, "targets": attention}
    assert model["lora"]["fake_score"] == {"rank": 3, "alpha": None, "targets": ["to_q"]}
    saved = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    recorded = saved["sid_lsg"]["config"]["model"]["lora"]
    assert LoRA(**recorded["generator"]) == ADAPTERS.generator
    module = make(small_sd, lora=Adapters(LoRA(3, targets=["to_q"]), LoRA(2, 6.0)))
    module.load_state_dict(saved["state_dict"])
    (file,) = (root / "generator" / "unet").glob("*.safetensors")
    exported, plain = load_file(file), merged(module.ema).state_dict()
    assert exported.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in exported.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lora.generator.rank", "0"], "rank must be at least 1"),
        (["--model.lora.generator.alpha", "2"], "rank"),
        (["--model.lora.generator.rnk", "2"], "rnk"),
    ],
)
def test_invalid_adapter_options_are_rejected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    prompts, root = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a cat")
    common = ["--data.prompts", str(prompts), "--trainer.default_root_dir", str(root)]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--model.teacher", "nobody/nothing", *common, *options])
    assert not root.exists()
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 4, "alpha": 0.0}, "alpha must be a positive"),
        ({"rank": 4, "alpha": float("nan")}, "alpha must be a positive"),
        ({"rank": 4, "targets": []}, "targets must be"),
    ],
)
@pytest.mark.parametrize("name", ["fake_score", "generator"])
def test_adapters_without_effect_are_rejected(name: str, options: Any, message: str) -> None:
    """They are rejected before the teacher is loaded, which may need a download."""
    with pytest.raises(UsageError, match=rf"--model\.lora\.{name}\.{message}"):
        SiDLSG("nobody/nothing", lora=Adapters(**{name: LoRA(**options)}))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("to_x", "no layer's name ends with 'to_x'.*to_q'"),
        ("o_q", "no layer's name ends with 'o_q'"),
        ("norm1", "--model.lora.generator.targets: .*norm1' is a LayerNorm, and only linear"),
    ],
)
def test_layers_that_cannot_have_adapters_are_rejected(
    small_sd: str, target: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make(small_sd, lora=Adapters(generator=LoRA(4, targets=["to_q", target])))


def test_training_adapters_needs_no_peft(
    small_sd: str, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert merged(fit(1).ema)


def test_adapters_cannot_be_kept_apart_from_their_base(small_sd: str) -> None:
    with pytest.raises(UsageError, match="--model.ema.device cpu: .*Leave the option out"):
        make(small_sd, lora=Adapters(generator=LoRA(4)), ema=EMA(device="cpu"))
    make(small_sd, lora=Adapters(LoRA(4)), ema=EMA(device="cpu"))
