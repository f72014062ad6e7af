"""Exports read weights from files one at a time; killed ones leave nothing that looks finished."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from torch import Tensor

from sid_lsg.checkpoints.file import save, save_counted
from sid_lsg.checkpoints.shards import _make, _name, _write_manifest
from sid_lsg.cli import main
from sid_lsg.commands.export import export
from sid_lsg.generation.trained import _Joined
from sid_lsg.networks.adapted import adapters
from sid_lsg.networks.lora import Merged, adapt
from sid_lsg.options.lora import LoRA
from tests.helpers import forked
from tests.helpers.memory import peak
from tests.helpers.tiny_families import FAMILIES, TRANSFORMER, command

RANK = 2
KINDS = ["file", "shards", "adapters"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return Stable Diffusion 3's tiny folder with a transformer of 120 MB."""
    folder = Path(shutil.copytree(FAMILIES["sd3"].folder, tmp_path_factory.mktemp("big") / "sd3"))
    config = SD3Transformer2DModel.load_config(folder / "transformer")
    width = {"num_attention_heads": 6, "attention_head_dim": 64, "caption_projection_dim": 384}
    network = SD3Transformer2DModel.from_config(config, **width, num_layers=11)
    network.save_pretrained(folder / "transformer", max_shard_size="40MB")
    (folder / TRANSFORMER).unlink()
    return folder


@pytest.fixture(scope="module", params=KINDS)
def run(
    request: pytest.FixtureRequest, teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Tensor]]:
    """Write a run's checkpoint of this teacher; return the run and the generator's weights."""
    root = tmp_path_factory.mktemp(request.param)
    line = command(FAMILIES["sd3"], root, trainer__default_root_dir=root / "run")
    main([*line, "--trainer.max_steps=1"])
    path = (root / "run" / "checkpoints" / "last.ckpt").resolve()
    content = torch.load(path, weights_only=True)
    options = content["sid_lsg"]["config"]["model"]
    options["teacher"] = str(teacher)
    network = SD3Transformer2DModel.from_pretrained(teacher / "transformer")
    if request.param == "adapters":
        options["lora"] = {"generator": {"rank": RANK}}
        adapted = adapt(network, LoRA(RANK), seed=0)
        for p in adapted.parameters():
            p.data.normal_(std=0.1)
        state, expected = adapters(adapted), dict(Merged(adapted))
    else:
        state = {name: value + 0.01 for name, value in network.state_dict().items()}
        expected = state
    path.unlink()
    own = {f"ema.{name}": value.detach().clone() for name, value in state.items()}
    if request.param == "shards":
        _make(path)
        halves = [_rows(own, rank) for rank in (0, 1)]
        contents = [content | {"state_dict": half, "optimizer_states": []} for half in halves]
        files = [save_counted(one, path / _name(rank, 2)) for rank, one in enumerate(contents)]
        _write_manifest(path, files)
    else:
        save(content | {"state_dict": own}, path)
    return root / "run", expected


def _rows(state: dict[str, Tensor], rank: int) -> dict[str, Any]:
    return {
        name: {"sid_lsg.rows": value[: len(value) // 2] if rank == 0 else value[len(value) // 2 :]}
        for name, value in state.items()
    }


@pytest.mark.slow
def test_an_export_never_holds_the_network(
    run: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Its weights are 120 MB; the tiny pipeline's other parts take less than 1."""
    root, expected = run
    export(str(root), str(tmp_path / "warm"), format="network", dtype="float16")
    for form, dtype in (("diffusers", "float32"), ("single-file", "bfloat16")):
        out = tmp_path / form
        most = peak(lambda: export(str(root), str(out), format=form, dtype=dtype))  # type: ignore[arg-type]  # noqa: B023
        assert most < 0.3 * sum(value.nbytes for value in expected.values()), form
    found = load_file(tmp_path / "diffusers" / TRANSFORMER)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def _killed(run: Path, output: Path) -> None:
    """Export, and be killed at the tenth weight."""
    read = 0

    for kind in (Merged, _Joined):
        before = kind.__getitem__

        def counted(self: Any, name: str, before: Callable[..., Tensor] = before) -> Tensor:
            nonlocal read
            read += len([*output.parent.glob(f".{output.name}.*/**/*.safetensors")]) > 0
            if read == 10:
                os.kill(os.getpid(), signal.SIGKILL)
            return before(self, name)

        kind.__getitem__ = counted  # type: ignore[method-assign]
    export(str(run), str(output))


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_looks_finished(
    run: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    process = forked.start(_killed, run[0], output, log=tmp_path / "log")
    process.join(100)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    (leftover,) = (path for path in tmp_path.iterdir() if path.name != "log")
    assert leftover.name.startswith(".out.")
    assert not (leftover / "model_index.json").exists()
    export(str(run[0]), str(output))
    assert {path.name for path in tmp_path.iterdir()} == {"log", "out"}
