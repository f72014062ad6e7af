"""Compiled blocks give the same numbers, without graph breaks or later recompilation."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

import sid_lsg.benchmark.runs
from sid_lsg.benchmark.runs import fit, measure
from sid_lsg.commands.benchmark import benchmark
from sid_lsg.commands.fit_options import FitOptions
from sid_lsg.distributed.sharding import blocks, shard, whole
from sid_lsg.networks.adapted import enable_checkpointing
from sid_lsg.networks.buffers import copied
from sid_lsg.networks.compilation import as_written, compile_blocks
from sid_lsg.options.benchmark import Benchmark
from sid_lsg.options.guidance import Guidance
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters, Compute, Memory
from sid_lsg.teachers.families import load
from sid_lsg.training.module import SiDLSG
from tests.helpers.tiny_families import FAMILIES


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use the eager backend: generating machine code for a CPU would take minutes."""
    monkeypatch.setattr("sid_lsg.networks.compilation._BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Programs(L.Callback):
    """Record the number of compiled graphs at the end of each iteration."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.counts.append(counters["stats"]["unique_graphs"])


def sgd(parameters: object) -> torch.optim.Optimizer:
    """Make an SGD optimizer: Adam would step by the sign of a gradient that is nearly zero."""
    return torch.optim.SGD(parameters, lr=1e-4)  # type: ignore[arg-type]


def trained(teacher: str, iterations: int = 2, **options: object) -> tuple[SiDLSG, Programs]:
    programs = Programs()
    module = SiDLSG(
        teacher,
        guidance=Guidance(scale=2.0),
        optimizer_fake=sgd,
        optimizer_generator=sgd,
        **options,
    )  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(module, 4, iterations, [programs], accelerator="cpu")
    return module, programs


EVERYTHING = {
    "memory": Memory("lean", ["fake_score", "generator", "teacher"], "bf16"),
    "micro_batch_size": 2,
    "lora": Adapters(LoRA(2), LoRA(2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    # SDXL's blocks are of Stable Diffusion's classes.
    [("sd", {}), ("sd", EVERYTHING), ("sana", {}), ("sd3", {})],
    ids=["sd", "sd, everything", "sana", "sd3"],
)
def test_a_compiled_run_equals_an_eager_one(
    small_sd: str, name: str, options: dict[str, object]
) -> None:
    teacher = str(FAMILIES[name].folder) if name in FAMILIES else small_sd
    plain, _ = trained(teacher, **options)
    compiled, programs = trained(teacher, compute=Compute(compile=True), **options)
    first, second = programs.counts
    # Five graphs per block: the generator with and without gradients, the fake score with
    # gradients for weights and for inputs, the teacher. Activation checkpointing adds one.
    number = len([*blocks(compiled.teacher.network)])
    assert second == first
    assert 5 * number <= first <= (6 if options else 5) * number
    assert not counters["graph_break"]
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    # Generating images with another batch size compiles no new graphs.
    compiled.generate(["a cat"] * 3, range(3), network=compiled.generator)
    compiled.sample_teacher(["a cat"] * 3, range(3), 2, 1.5)
    assert counters["stats"]["unique_graphs"] == first


def test_as_written_runs_eagerly() -> None:
    function = torch.compile(lambda x: x + 1, backend="eager")
    with as_written(True):
        function(torch.ones(2))
    assert not counters["stats"]["unique_graphs"]
    with as_written(False):
        function(torch.ones(2))
    assert counters["stats"]["unique_graphs"] == 1


def test_a_copy_is_not_compiled(tiny_sd: str) -> None:
    network = SiDLSG(tiny_sd).generator
    compile_blocks(network)
    copied = copy.deepcopy(network)
    assert all(block._compiled_call_impl for block in blocks(network))
    assert not any(block._compiled_call_impl for block in blocks(copied))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_sharded_network_is_compiled(tiny_sd: str, tmp_path: Path, checkpointed: bool) -> None:
    """FSDP2's hooks stay outside the graphs; the gradients are those of the plain network."""
    teacher = load(tiny_sd)
    plain, condition = teacher.network.requires_grad_(True), teacher.encode_prompts(["a", "b"])
    for p in plain.parameters():
        p.data = p.data.contiguous()  # as in a sharded network, so that rounding is the same
    compiled = copied(plain)
    x_t, t = torch.randn(2, *teacher.latent_shape), torch.tensor([20, 700])
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard(compiled, init_device_mesh("cpu", (1,)))
        compile_blocks(compiled)
        found = {}
        for network in (plain, compiled):
            if checkpointed:
                enable_checkpointing(network)
            for trained in (True, False, True):  # gradients for weights, for the input
                network.requires_grad_(trained)
                network.zero_grad()
                x = x_t.clone().requires_grad_(not trained)
                teacher.predict(network, x, t, condition).square().sum().backward()
                grads = [whole(p.grad) for p in network.parameters()] if trained else [x.grad]
                found[network, trained] = grads
            graphs = counters["stats"]["unique_graphs"]
        for trained in (True, False):
            for own, expected in zip(found[compiled, trained], found[plain, trained], strict=True):
                assert (own - expected).norm() <= 1e-5 * expected.norm() + 1e-7
    finally:
        dist.destroy_process_group()
    assert not counters["graph_break"]
    number = len([*blocks(plain)])
    assert 2 * number <= graphs <= 3 * number


@pytest.mark.slow
def test_the_benchmark_runs_the_compiled_graphs(
    small_sd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[int] = []

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        def program(*args: object) -> object:
            run[-1] += 1
            return graph(*args)

        return program

    class Iterations(L.Callback):
        def on_train_batch_start(self, *_: object) -> None:
            run.append(0)

    real_fit = sid_lsg.benchmark.runs.fit
    monkeypatch.setattr("sid_lsg.networks.compilation._BACKEND", counting)
    monkeypatch.setattr(
        "sid_lsg.benchmark.runs.fit",
        lambda module, batch, count, callbacks, **trainer: real_fit(
            module, batch, count, [Iterations(), *callbacks], **trainer
        ),
    )
    rows = {}
    for compiled in (False, True):
        run.clear()
        compute = Compute(compile=compiled)
        module = SiDLSG(small_sd, optimizer_fake=sgd, optimizer_generator=sgd, compute=compute)  # type: ignore[arg-type]
        rows[compiled] = measure(module, 2, iterations=1, warmup=1, accelerator="cpu")
    # Warm-up, whole, in parts, operations, operators, memory: compiled graphs run except where
    # operations or tensors are counted one by one.
    warmup, whole, parts, operations, operators, memory = run
    assert warmup == whole == parts == operators > 0
    assert operations == memory == 0
    assert rows[True]["flops"] == rows[False]["flops"]
    assert rows[True]["memory_bytes"] == rows[False]["memory_bytes"]


def test_the_benchmark_command_accepts_compile(tiny_sd: str) -> None:
    options = FitOptions(benchmark, Benchmark, ["--model.teacher", tiny_sd])
    assert not options.module({}).compute.compile
    assert options.module({"compute.compile": True}).compute.compile
