"""Adam without a first moment equals torch.optim.Adam and uses less memory."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision.amp import _optimizer_handles_unscaling
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Adam
from torch.utils._python_dispatch import TorchDispatchMode

from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.cli import main
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.distributed.sharding import local, match_memory_format, shard
from sid_lsg.messages.errors import UsageError
from sid_lsg.optimizers import adam as optimizers
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.optimizers.adam8bit import Adam8bit
from sid_lsg.training.alternating import AlternatingModule
from sid_lsg.training.module import SiDLSG
from tests.helpers.paths import CONFIGS

BETAS = (0.0, 0.999)
SHAPES = [(3, 4, 3, 3), (7,), (), (0, 2), (5, 33), (64, 8, 3, 3)]


def make_weights(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    """Create weights; convolution weights are channels-last, as in the networks."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=random) for shape in shapes]
    return [
        nn.Parameter(w.to(memory_format=torch.channels_last) if w.dim() == 4 else w) for w in made
    ]


def gradients(weight: Tensor, random: torch.Generator, low: float = -8, high: float = 2) -> Tensor:
    """Draw gradients of all magnitudes, some of them zero."""
    size, sign, kept = (torch.rand(weight.shape, generator=random) for _ in range(3))
    powers = torch.pow(10.0, size.double() * (high - low) + low).float()
    return torch.empty_like(weight).copy_(powers * (sign - 0.5).sign() * (kept > 0.1))


def train(
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    steps: int = 8,
    seed: int = 0,
    device: str = "cpu",
    **magnitudes: float,
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    weights = [nn.Parameter(w.detach().to(device)) for w in make_weights(shapes, seed)]
    optimizer = make(weights)
    random = torch.Generator().manual_seed(seed + 1)
    for step in range(steps):
        for place, w in enumerate(weights):
            w.grad = gradients(w.detach().cpu(), random, **magnitudes).to(device)
            if (step + place) % 5 == 4:
                w.grad = None  # does not count as a step
        optimizer.step()
    return weights, optimizer


def same(first: Tensor, second: Tensor) -> bool:
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def assert_same(first: Any, second: Any) -> None:
    """Compare weights, mean squares and step counts bitwise; only Adam has a first moment."""
    for one, other in zip(first[0], second[0], strict=True):
        assert same(one, other)
        assert one.stride() == other.stride()
        own, adams = first[1].state[one], second[1].state[other]
        assert own.keys() == adams.keys() - {"exp_avg"}
        for name, value in own.items():
            assert same(value, adams[name])
            assert (value.dtype, value.device) == (adams[name].dtype, adams[name].device)
            assert value.stride() == adams[name].stride()


# Differences of gradients up to 1e38 do not overflow float32; 1e-45 is the smallest denormal.
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 9), max_size=4).map(tuple) | st.just((40, 9, 3, 3)), min_size=1
    ),
    steps=st.integers(1, 20),
    seed=st.integers(0, 999),
    low=st.sampled_from([-45.0, -20.0, -8.0]),
    high=st.sampled_from([-38.0, -3.0, 5.0, 38.0]),
    lr=st.sampled_from([0.0, 1e-6, 5e-5, 0.1]) | st.just(torch.tensor(3e-4)),
    beta2=st.sampled_from([0.0, 0.9, 0.999]),
    eps=st.sampled_from([1e-8, 1e-4]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    fused=st.booleans(),
    piece=st.sampled_from([1, 100, 2**25]),
)
@pytest.mark.slow
def test_updates_equal_torchs_adam(
    shapes: list[tuple[int, ...]],
    steps: int,
    seed: int,
    low: float,
    high: float,
    piece: int,
    fused: bool,
    beta2: float,
    **options: Any,
) -> None:
    options["betas"] = (0.0, beta2)
    run: dict[str, Any] = {"shapes": shapes, "steps": steps, "seed": seed, "low": low, "high": high}
    adam = train(lambda w: Adam(w, fused=fused or None, **options), **run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "_PIECE", piece)
        ours = train(lambda w: AdamWithoutMomentum(w, fused=fused, **options), **run)
    assert_same(ours, adam)


def test_a_thousand_steps_equal_torchs_adam() -> None:
    shapes = [(33, 5), (4, 4, 3, 3)]
    adam = train(lambda w: Adam(w, 1e-3, BETAS), shapes, steps=1000)
    ours = train(lambda w: AdamWithoutMomentum(w, 1e-3, fused=False), shapes, steps=1000)
    assert_same(ours, adam)
    assert not torch.equal(ours[0][0], make_weights(shapes)[0])


@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_updates_equal_torchs_adam_on_a_gpu(fused: bool, weight_decay: float) -> None:
    options: dict[str, Any] = {"lr": 1e-3, "betas": BETAS, "weight_decay": weight_decay}
    run: dict[str, Any] = {"shapes": [*SHAPES, (640, 640, 3, 3)], "device": "cuda", "low": -30.0}
    adam = train(lambda w: Adam(w, fused=fused or None, **options), **run)
    assert_same(train(lambda w: AdamWithoutMomentum(w, fused=fused, **options), **run), adam)


def test_parameter_groups_have_separate_options() -> None:
    def groups(weights: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "eps": 1e-3}]

    adam = train(lambda w: Adam(groups(w), 1e-3, BETAS))
    assert_same(train(lambda w: AdamWithoutMomentum(groups(w), 1e-3, fused=False)), adam)


def test_weight_decay_does_not_change_the_gradients() -> None:
    weights = make_weights(SHAPES)
    for w in weights:
        w.grad = torch.ones_like(w)
    AdamWithoutMomentum(weights, weight_decay=0.1, fused=False).step()
    assert all((w.grad == 1).all() for w in weights)


# ---------------------------------------------------------------------- memory


class Made(TorchDispatchMode):
    """Record the number of elements of the largest result of an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = op(*args, **(kwargs or {}))
        if not op.name().split(".")[0].endswith("_") and results is not None:
            made = results if isinstance(results, list | tuple) else [results]
            self.largest = max(self.largest, sum(r.numel() for r in made if torch.is_tensor(r)))
        return results


def test_one_tensor_per_weight_is_kept_and_temporary_copies_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(optimizers, "_PIECE", 1000)
    shapes = [(30, 30)] * 5 + [(10, 10)] * 30 + [(50, 50)] * 2
    weights, optimizer = train(lambda w: AdamWithoutMomentum(w, fused=False), shapes, steps=5)
    kept = [value for state in optimizer.state.values() for value in state.values()]
    numbers = sum(w.numel() for w in weights)
    assert sum(value.nbytes for value in kept) == 4 * numbers + 4 * len(weights)
    for w in weights:
        w.grad = torch.ones_like(w)
    with Made() as made:
        optimizer.step()
    assert made.largest == 2500  # a weight larger than a piece is its own piece
    assert numbers > 10_000


# ---------------------------------------------------------------------- states


@pytest.mark.parametrize("fused", [False, True])
def test_it_continues_from_the_state_of_torchs_adam(fused: bool) -> None:
    """The first moment is dropped; a weight without steps has no state yet."""
    weights, adam = train(lambda w: Adam(w, 1e-3, BETAS, fused=fused or None), steps=4)
    saved = copy.deepcopy(adam.state_dict())
    others = copy.deepcopy(weights)
    ours = AdamWithoutMomentum(others, 5.0, fused=not fused)  # the stored options are loaded too
    ours.load_state_dict(saved)
    assert "exp_avg" in saved["state"][0]  # the argument is not modified
    assert_same((others, ours), (weights, adam))
    for optimizer, updated in ((adam, weights), (ours, others)):
        for w in updated:
            w.grad = torch.full_like(w, 0.3)
        optimizer.step()
    assert_same((others, ours), (weights, adam))


@pytest.mark.parametrize("other", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adamax])
def test_states_of_other_optimizers_are_rejected(other: Any) -> None:
    make = {"momentum": 0.9} if other is torch.optim.SGD else {}
    saved = train(lambda w: other(w, lr=1e-3, **make))[1].state_dict()
    with pytest.raises(UsageError, match="--ckpt_path: .* was not Adam"):
        AdamWithoutMomentum(make_weights(SHAPES)).load_state_dict(saved)


def test_momentum_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"needs betas: \[0, \.\.\.\], got \[0\.9, 0\.999\]"):
        AdamWithoutMomentum(make_weights(SHAPES), betas=(0.9, 0.999))


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_unscales_before_the_step_and_skips_overflows(fused: bool) -> None:
    """As in torch.optim.Adam by default; if fused, hooks would never see unscaled gradients."""
    weights = [nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)) for _ in range(2)]
    optimizers = Adam(weights[:1], 1e-2, BETAS), AdamWithoutMomentum(weights[1:], 1e-2, fused=fused)
    for weight, optimizer in zip(weights, optimizers, strict=True):
        assert not _optimizer_handles_unscaling(optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for factor in (1.0, torch.inf, 2.0):
            optimizer.zero_grad()
            scaler.scale((weight * factor).square().sum()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.state[weight]["step"] == 2
    torch.testing.assert_close(*weights)


def test_no_optimizer_of_a_module_unscales_in_its_step() -> None:
    """A fused torch.optim.Adam would otherwise hide overflows from the hooks."""
    optimizer = Adam(make_weights(SHAPES), 1e-2, BETAS, fused=True)
    assert _optimizer_handles_unscaling(optimizer)
    AlternatingModule().remember_options([optimizer])
    assert not _optimizer_handles_unscaling(optimizer)


# ---------------------------------------------------------------------- sharded weights


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """Start a process group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("fused", [False, True])
def test_sharded_weights_get_the_same_updates(fused: bool) -> None:
    """States are sharded like their weights, and updates equal those of one process."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 5))
    plain = copy.deepcopy(network)
    shard(network, init_device_mesh("cpu", (1,)))
    both = [
        ([*network.parameters()], AdamWithoutMomentum(network.parameters(), 1e-3, fused=fused)),
        ([*plain.parameters()], Adam(plain.parameters(), 1e-3, BETAS, fused=fused or None)),
    ]
    x = torch.randn(4, 2, 4, 4)
    for _ in range(3):
        for weights, optimizer in both:
            optimizer.zero_grad()
            (network if isinstance(weights[0], DTensor) else plain)(x).square().sum().backward()
            optimizer.step()
    (sharded, ours), (weights, adam) = both
    for one, other in zip(sharded, weights, strict=True):
        square = ours.state[one]["exp_avg_sq"]
        assert isinstance(square, DTensor)
        assert square.placements == one.placements
        assert torch.equal(local(square), adam.state[other]["exp_avg_sq"])
        assert torch.equal(local(one), other)
        assert ours.state[one]["step"] == 3


# ---------------------------------------------------------------------- training


def fit(
    teacher: str,
    root: Path,
    make: Callable[..., torch.optim.Optimizer],
    steps: int,
    ckpt_path: Path | None = None,
) -> SiDLSG:
    module = SiDLSG(teacher, optimizer_fake=make, optimizer_generator=make)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=root,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,
        plugins=[SafeCheckpointIO()],
    )
    data = PromptDataModule(str(root / "prompts.txt"), batch_size=2, num_workers=0)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(root / f"{steps}.ckpt")
    return module


@pytest.mark.slow
def test_a_run_can_change_its_optimizer(small_sd: str, tmp_path: Path) -> None:
    """One iteration with Adam and one with AdamWithoutMomentum equal two with Adam, bitwise."""
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo dogs\n")

    def adam(parameters: Any) -> Adam:
        return Adam(parameters, 1e-3, BETAS)

    def ours(parameters: Any) -> Adam:
        return AdamWithoutMomentum(parameters, 1e-3, fused=False)

    whole = fit(small_sd, tmp_path, adam, 2)
    fit(small_sd, tmp_path, adam, 1)
    parts = fit(small_sd, tmp_path, ours, 2, tmp_path / "1.ckpt")
    expected = whole.state_dict()
    for name, value in parts.state_dict().items():
        assert torch.equal(value, expected[name]), name
    saved = torch.load(tmp_path / "2.ckpt", weights_only=True)["optimizer_states"]
    assert all(own.keys() == {"step", "exp_avg_sq"} for s in saved for own in s["state"].values())


def test_the_command_line_accepts_it(capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS / "demo.yaml"
    name = "sid_lsg.optimizers.AdamWithoutMomentum"
    both = [f"--model.optimizer_{which}={name}" for which in ("fake", "generator")]
    rates = [f"--model.optimizer_{which}.lr=1e-4" for which in ("fake", "generator")]
    options = [*both, *rates, "--model.optimizer_generator.fused=true"]
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), *options, "--print_config"])
    assert end.value.code == 0
    found = yaml.safe_load(capsys.readouterr().out)["model"]["optimizer_generator"]
    assert found["class_path"] == name
    assert (found["init_args"]["lr"], found["init_args"]["fused"]) == (1e-4, True)
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", str(config), *both, "--model.optimizer_fake.amsgrad=true"])
    assert end.value.code == 2
    assert "amsgrad" in capsys.readouterr().err


@pytest.mark.slow
def test_8_bit_states_resume_bitwise(small_sd: str, tmp_path: Path) -> None:
    """Weights keep their memory format, which affects the rounding of convolutions."""
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo dogs\n")

    def eight_bits(parameters: Any) -> torch.optim.Optimizer:
        return Adam8bit(parameters, 1e-3, BETAS)

    whole = fit(small_sd, tmp_path, eight_bits, 2)
    fit(small_sd, tmp_path, eight_bits, 1)
    parts = fit(small_sd, tmp_path, eight_bits, 2, tmp_path / "1.ckpt")
    expected = whole.state_dict()
    for name, value in parts.state_dict().items():
        assert torch.equal(value, expected[name]), name
        assert value.stride() == expected[name].stride()
    assert any(not p.is_contiguous() for p in whole.generator.parameters())


def test_8_bit_steps_are_close_to_adams() -> None:
    """This holds if the gradients of a block are within two orders of magnitude."""
    shapes, magnitudes = SHAPES[-2:], {"low": -1.0, "high": 1.0}
    weights, ours = train(lambda w: Adam8bit(w, 1e-3, BETAS, min_8bit_size=1), shapes, **magnitudes)
    expected, _ = train(lambda w: Adam(w, 1e-3, BETAS), shapes, **magnitudes)
    start = make_weights(shapes)
    for weight, adams, first in zip(weights, expected, start, strict=True):
        moved = (adams - first).norm()
        assert moved > 0
        assert (weight - adams).norm() < 0.1 * moved
        assert ours.state[weight]["state2"].dtype == torch.uint8


def test_8_bit_blocks_follow_the_order_in_memory() -> None:
    """Results do not depend on a tensor's memory format."""
    plain = nn.Parameter(torch.randn(8, 3, 3, 16, generator=torch.Generator().manual_seed(0)))
    last = nn.Parameter(
        plain.detach().permute(0, 3, 1, 2).clone(memory_format=torch.preserve_format)
    )
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    for w, order in ((plain, (0, 1, 2, 3)), (last, (0, 3, 1, 2))):
        optimizer = Adam8bit([w], 1e-2, BETAS, min_8bit_size=1)
        for step in range(3):
            random = torch.Generator().manual_seed(step)
            w.grad = torch.randn(8, 3, 3, 16, generator=random).permute(order)
            optimizer.step()
    assert torch.equal(plain.permute(0, 3, 1, 2), last)


@pytest.mark.parametrize("plain", [False, True])
def test_moments_get_the_memory_format_of_their_weights(plain: bool) -> None:
    """A sharded run can be resumed in one process, and the other way round."""
    channels_last = torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last)
    weight, moment = channels_last, torch.randn(4, 3, 3, 3)
    if plain:
        weight, moment = weight.contiguous(), moment.to(memory_format=torch.channels_last)
    found = match_memory_format(moment, weight)
    assert torch.equal(found, moment)
    assert found.stride() == weight.stride() != moment.stride()
    assert match_memory_format(found, weight) is found
    step = torch.zeros(())
    assert match_memory_format(step, weight) is step  # of another shape


def test_defaults_have_one_source(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line and `SiDLSG` take the defaults of the class."""
    with pytest.raises(SystemExit):
        main(["fit", "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    for name in ("optimizer_fake", "optimizer_generator"):
        assert model[name]["class_path"] == "sid_lsg.optimizers.AdamWithoutMomentum"
        found = model[name]["init_args"]
        assert (found["lr"], found["betas"]) == (1e-6, [0.0, 0.999])
        assert inspect.signature(SiDLSG).parameters[name].default is AdamWithoutMomentum
    own = AdamWithoutMomentum(make_weights(SHAPES)).defaults
    assert (own["lr"], own["betas"]) == (1e-6, (0.0, 0.999))
