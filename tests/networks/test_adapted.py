"""Networks with adapters on one base train as networks with a copy of the base each."""

import copy
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sid_lsg.callbacks import Export
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.checkpoints.opening import open_checkpoint
from sid_lsg.checkpoints.shards import joined
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.distributed.sharding import blocks, local
from sid_lsg.export.folder import save_pipeline
from sid_lsg.networks.adapted import Adapted, adapters
from sid_lsg.networks.lora import LORA_FILE, adapt
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters, Memory
from sid_lsg.teachers.families import load
from sid_lsg.training.module import SiDLSG
from sid_lsg.training.strategies import register_strategies
from tests.helpers import forked
from tests.helpers.modules import merged
from tests.helpers.strategy_runs import Traffic

PROMPTS = [f"a {n} {t}" for n in "abcd" for t in ("red cat", "blue bird", "moon", "dog")]
LORA = Adapters(LoRA(4), LoRA(2, alpha=6.0))
EVERY = ["fake_score", "generator", "teacher"]
STEPS = 5


def adam(parameters: Any) -> torch.optim.Optimizer:
    # With the paper's eps, Adam would turn the rounding of a tiny gradient into a whole step.
    return torch.optim.Adam(parameters, lr=1e-3, betas=(0.0, 0.99), eps=1e-3)


def stir(network: nn.Module, seed: int) -> None:
    """Set B as after training, so that each network's adapters matter from the start."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in adapters(network).items():
        if ".lora_B." in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)


class OneBase(SiDLSG):
    """Networks that start apart, on one base; record losses, gradients, traffic and blocks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for seed, network in enumerate((self.fake_score, self.generator, self.ema)):
            stir(network, min(seed, 1))
        self.rows: list[Tensor] = []
        self.traffic, self.gathered = Traffic(), 0

    def training_step(self, batch: Any, batch_idx: int) -> None:
        with self.traffic if self.trainer.global_step == 0 else nullcontext():
            super().training_step(batch, batch_idx)
        for name in ("loss_fake", "loss_generator"):
            self.rows.append(self.trainer.callback_metrics[name].reshape(1))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rows.append(
            torch.cat([p.grad.flatten() for p in self.optimized(optimizer)])  # type: ignore[union-attr]
        )
        super().on_before_optimizer_step(optimizer)

    def optimized(self, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        own = [*blocks(self.teacher.network)]

        def count(*_: Any) -> None:
            whole = [not isinstance(next(block.parameters()), DTensor) for block in own]
            self.gathered = max(self.gathered, sum(whole))

        for block in own:
            block.register_forward_pre_hook(count)


class Copies(OneBase):
    """The same with a copy of the base for each network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("fake_score", "generator", "ema"):
            network: Any = getattr(self, name)
            self.bases.append(copy.deepcopy(network.base))
            setattr(self, name, network.on_base(self.bases[-1]))
        self.ema.requires_grad_(False)


def train(root: Path, teacher: str, kind: type[OneBase], run: dict[str, Any]) -> OneBase:
    """Train, and save the end: weights, losses, gradients, traffic and the largest base."""
    memory = Memory(*run.get("memory", ()))
    module = kind(
        teacher, lora=LORA, optimizer_fake=adam, optimizer_generator=adam, memory=memory,
        guidance=Guidance(scale=1.5), prompt_dropout=0.0, num_steps=run.get("num_steps", 1),
    )  # fmt: skip
    trainer = L.Trainer(
        accelerator="cpu", max_steps=run.get("steps", STEPS), max_epochs=-1, logger=False,
        callbacks=[Export()] if run.get("export") else [], log_every_n_steps=1,
        default_root_dir=root, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, plugins=[SafeCheckpointIO()],
        **run.get("trainer", {}),
    )  # fmt: skip
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    data = PromptDataModule(str(root / "prompts.txt"), batch_size=4, num_workers=0)
    before = str(root.parent / run["from"] / "state.ckpt") if "from" in run else None
    trainer.fit(module, data, ckpt_path=before, weights_only=True)
    trainer.save_checkpoint(root / "state.ckpt")
    base, adapted = module.teacher.network, (module.fake_score, module.generator, module.ema)
    torch.save(
        {
            "weights": {
                name: p.detach() for name, p in module.named_parameters() if ".lora_" in name
            },
            "rows": module.rows,
            "traffic": dict(module.traffic.bytes),
            "base": sum(local(p).untyped_storage().nbytes() for p in base.parameters()),
            "networks": stored(base, *module.bases, *adapted),
            "gathered": module.gathered,
            "sharded": {isinstance(p, DTensor) for p in base.parameters()},
        },
        root / f"end{trainer.global_rank}.pt",
    )  # fmt: skip
    return module


def stored(*networks: nn.Module) -> int:
    """Return the bytes of all parameters, each storage once."""
    parameters = [local(p).untyped_storage() for net in networks for p in net.parameters()]
    return sum({one.data_ptr(): one.nbytes() for one in parameters}.values())


def end(folder: Path, run: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / run / f"end{rank}.pt", weights_only=True)
    return found


def together(folder: Path, teacher: str, runs: dict[str, dict[str, Any]]) -> None:
    register_strategies()
    for name, run in runs.items():
        (folder / name).mkdir(exist_ok=True)
        kind = Copies if run.get("copies") else OneBase
        train(folder / name, run.get("teacher", teacher), kind, run)


MEMORIES: dict[str, tuple[Any, ...]] = {
    "fast": (),
    "checkpointing": ("fast", EVERY),
    "lean": ("lean", None),
    "lean, checkpointing": ("lean", EVERY),
    "fake score checkpointed": ("balanced", ["fake_score"]),
}
SHORT = {"steps": 2}
TWO: dict[str, dict[str, Any]] = {
    "ddp_multi, copies": {"copies": True},
    "fsdp2, copies": {"copies": True},
    "ddp, fast": SHORT,
    "ddp_multi, fast": {"export": True},
    "fsdp2, fast": {"export": True},
    "fsdp2, checkpointing": SHORT,
    "fsdp2, lean": SHORT,
}  # runs on two processes, each with half of the batch
STEP_BY_STEP = {"num_steps": 2, "steps": 1}


@pytest.fixture(scope="module")
def results(small_sd: str, tiny_sd: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with copies of the base, and on one base with each strategy and memory."""
    folder = tmp_path_factory.mktemp("bases")
    runs = {"copies": {}, "copies, short": SHORT}
    runs["copies, two steps"] = STEP_BY_STEP | {"teacher": tiny_sd}
    together(folder, small_sd, {name: run | {"copies": True} for name, run in runs.items()})
    runs = {}
    for name, run in TWO.items():
        strategy, memory = name.split(", ")
        trainer = {"strategy": strategy, "devices": 2}
        runs[name] = run | {"trainer": trainer, "memory": MEMORIES.get(memory, ())}
    sharded = {"trainer": {"strategy": "fsdp2_sharded", "devices": 2}}
    memory = {"memory": MEMORIES["lean, checkpointing"], "teacher": tiny_sd}
    runs["two steps"] = sharded | STEP_BY_STEP | memory
    runs["killed"] = sharded | {"steps": 1}
    runs["resumed"] = sharded | {"steps": 2, "from": "killed"}
    runs["whole"] = sharded | {"steps": 2, "export": True}
    for strategy in ("ddp_multi", "fsdp2"):
        trainer = {"strategy": strategy, "devices": 2, "precision": "bf16-mixed"}
        half = {"trainer": trainer, "memory": ("fast", None, "bf16")}
        runs[f"{strategy}, bf16"] = SHORT | half
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(forked.free_port())}
    common |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    jobs = [([folder, small_sd, runs], common | {"RANK": r, "LOCAL_RANK": r}) for r in "01"]
    forked.all_end_well(together, jobs, folder, seconds=600)
    return folder


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compare adapters, losses and gradients, of as many iterations as there are."""
    assert_same_weights(ours, theirs)
    number = len(ours["rows"])
    assert len(theirs["rows"]) >= number > 0
    for a, b in zip(ours["rows"], theirs["rows"][:number], strict=True):
        assert relative(a, b) < 1e-6


def assert_same_weights(ours: dict[str, Any], theirs: dict[str, Any], limit: float = 1e-6) -> None:
    """Compare the adapters of each network."""
    for network in ("fake_score", "generator", "ema"):
        a, b = (
            torch.cat([v.flatten() for k, v in of["weights"].items() if k.startswith(network)])
            for of in (ours, theirs)
        )
        assert relative(a, b) < limit


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORIES)
def test_one_base_trains_as_three_copies(
    results: Path, small_sd: str, tmp_path: Path, memory: str
) -> None:
    """A recomputation must use the adapters of its forward pass, whatever is on meanwhile."""
    train(tmp_path, small_sd, OneBase, {"memory": MEMORIES[memory]})
    ours, theirs = end(tmp_path.parent, tmp_path.name), end(results, "copies")
    assert_same(ours, theirs)
    adapted = sum(v.nbytes for v in ours["weights"].values())
    assert ours["networks"] == ours["base"] + adapted
    assert theirs["networks"] == 4 * ours["base"] + adapted


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_processes_train_as_one_and_as_with_copies(results: Path, name: str) -> None:
    # Convolutions round otherwise in fsdp2's memory format.
    strategy = "fsdp2" if "fsdp2" in name else "ddp_multi"
    ours, two = end(results, name), end(results, f"{strategy}, copies")
    one = end(results, "copies, short" if TWO[name] == SHORT else "copies")
    assert_same_weights(ours, one)
    if TWO[name] == SHORT:
        two["weights"] = one["weights"]
    assert_same(ours, two)
    for key, value in end(results, name, 1)["weights"].items():
        assert torch.equal(value, ours["weights"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["fast", "checkpointing", "lean"])
def test_fsdp2_shards_one_base_and_gathers_it_once_per_pass(results: Path, memory: str) -> None:
    whole = end(results, "ddp_multi, fast")
    ranks = [end(results, f"fsdp2, {memory}", rank) for rank in (0, 1)]
    assert sum(rank["base"] for rank in ranks) == whole["base"]
    adapted = whole["networks"] - whole["base"]
    for rank in ranks:
        assert rank["networks"] - rank["base"] == adapted
        assert rank["base"] < 0.52 * whole["base"]
        assert rank["sharded"] == {True}
    traffic = ranks[0]["traffic"]
    assert not any("reduce_scatter" in name for name in traffic)
    # Phase 1: generator and fake score forward, fake score backward. Phase 2: all three networks
    # forward and backward. `lean` repeats the forward passes of two.
    extra = traffic["c10d::_allgather_base_"] - 9 * whole["base"]
    assert 0 < extra <= 2 * whole["base"] if memory == "lean" else extra == 0
    trained = sum(v.nbytes for k, v in whole["weights"].items() if not k.startswith("ema."))
    assert 0 <= traffic["c10d::allreduce_"] - trained < 400


@pytest.mark.slow
def test_a_sharded_base_in_bf16_keeps_its_dtypes(results: Path) -> None:
    """It is gathered as it is stored, and computes under autocast as a whole one."""
    ours, theirs = (end(results, f"{name}, bf16") for name in ("fsdp2", "ddp_multi"))
    assert ours["traffic"]["c10d::_allgather_base_"] == 9 * theirs["base"]
    assert theirs["base"] < 0.6 * end(results, "ddp_multi, fast")["base"]
    assert ours["base"] < 0.52 * theirs["base"]
    assert all(value.dtype == torch.float32 for value in ours["weights"].values())
    for a, b in zip(ours["rows"][2::4], theirs["rows"][2::4], strict=True):
        assert relative(a, b) < 1e-3  # the fake score's loss


@pytest.mark.slow
def test_fsdp2_never_gathers_the_whole_base(results: Path, tiny_sd: str) -> None:
    """Also not where two steps of the generator and the teacher are recomputed, on one base."""
    ours = end(results, "two steps")
    assert_same_weights(ours, end(results, "copies, two steps"), 1e-5)
    assert ours["sharded"] == {True}
    number = len([*blocks(load(tiny_sd).network)])
    # The block that has run, the one that runs, and one that is gathered in advance.
    assert 1 <= ours["gathered"] <= 3 < number


@pytest.mark.slow
def test_a_killed_run_on_a_sharded_base_resumes_bitwise(results: Path) -> None:
    whole, resumed = (
        open_checkpoint(results / name / "state.ckpt") for name in ("whole", "resumed")
    )
    ours, theirs = (joined(found.content) for found in (resumed, whole))
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    for a, b in zip(ours["optimizer_states"], theirs["optimizer_states"], strict=True):
        for number, state in b["state"].items():
            assert all(torch.equal(a["state"][number][key], v) for key, v in state.items())


@pytest.mark.slow
def test_a_sharded_base_is_exported_with_the_adapters_merged(results: Path) -> None:
    exported, whole = (
        load(str(results / name / "generator")).network.state_dict()
        for name in ("fsdp2, fast", "ddp_multi, fast")
    )
    for name, value in whole.items():
        torch.testing.assert_close(exported[name], value, rtol=1e-5, atol=1e-6)
    files = [results / name / "generator/lora" for name in ("fsdp2, fast", "ddp_multi, fast")]
    assert [[path.name for path in folder.iterdir()] for folder in files] == 2 * [[LORA_FILE]]


@pytest.mark.slow
def test_adapters_of_a_sharded_checkpoint_are_exported_as_the_run_does(
    results: Path, small_sd: str, tmp_path: Path
) -> None:
    state = open_checkpoint(results / "whole/state.ckpt").content["state_dict"]
    teacher = load(small_sd)
    network = adapt(teacher.network, LORA.generator, seed=9)  # type: ignore[arg-type]
    network.load_state_dict(joined({k[4:]: v for k, v in state.items() if k.startswith("ema.")}))
    save_pipeline(teacher, network, tmp_path, t_init=625)
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        ours, theirs = (root / "unet" / file for root in (tmp_path, results / "whole/generator"))
        assert ours.read_bytes() == theirs.read_bytes()


# ---------------------------------------------------------------------- peft


@pytest.mark.parametrize("targets", [["to_q", "to_v", "to_out.0"], ["conv1", "proj_in", "to_k"]])
@pytest.mark.parametrize("model", ["tiny_sd", "package:demo/fashion_flow"])
def test_an_adapted_network_computes_as_pefts(
    request: pytest.FixtureRequest, model: str, targets: list[str]
) -> None:
    """Outputs, gradients of adapters and inputs, and names."""
    from peft import LoraConfig

    if "flow" in model and "conv1" in targets:
        targets = ["proj", "to_k", "add_q_proj"]
    teacher = load(request.getfixturevalue(model) if model == "tiny_sd" else model)
    theirs: Any = copy.deepcopy(teacher.network)
    theirs.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    ours = adapt(teacher.network, LoRA(3, 6.0, targets), seed=0)
    stir(ours, 0)
    own = adapters(ours)
    peft = {name: p for name, p in theirs.named_parameters() if ".lora_" in name}
    assert own.keys() == peft.keys()
    for name, p in peft.items():
        p.data = own[name].detach().clone()
    x = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([100, 700]).to(teacher.schedule.time_dtype)
    condition = teacher.encode_prompts(PROMPTS[:2])
    results = []
    for network in (ours, theirs):
        inputs = x.clone().requires_grad_(True)
        teacher.predict(network, inputs, t, condition).square().sum().backward()
        gradients = {n: p.grad for n, p in network.named_parameters() if ".lora_" in n}
        results.append(gradients | {"x": inputs.grad})
    for name, value in results[1].items():
        torch.testing.assert_close(results[0][name], value, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in teacher.parameters())


def test_adapters_switch_with_the_network_that_runs(tiny_sd: str) -> None:
    module = OneBase(tiny_sd, lora=LORA)
    networks = (module.teacher.network, module.fake_score, module.generator)
    first, again = ([module.generate(PROMPTS[:1], [0], network=n) for n in networks] for _ in "12")
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert all(relative(a, b) > 1e-3 for a, b in pairwise(first))
    for network, image in zip(networks[1:], first[1:], strict=True):
        assert relative(module.generate(PROMPTS[:1], [0], network=merged(network)), image) < 1e-5
    adapted: Any = module.generator
    with pytest.raises(TypeError):  # an error in a forward pass leaves the adapters off
        adapted(unknown=1)
    assert torch.equal(module.generate(PROMPTS[:1], [0], network=networks[0]), first[0])


def test_a_copy_of_a_base_is_another_base(tiny_sd: str) -> None:
    module = OneBase(tiny_sd, lora=LORA)
    network: Any = module.generator
    other = network.on_base(copy.deepcopy(network.base))
    assert isinstance(other, Adapted)
    with torch.no_grad():
        for p in other.base.parameters():
            p.zero_()
    image = module.generate(PROMPTS[:1], [0], network=module.generator)
    assert image.abs().max() > 0
    assert not torch.equal(module.generate(PROMPTS[:1], [0], network=other), image)
