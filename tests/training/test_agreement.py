"""Processes on nodes with disks of their own start one run, or say what differs."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from sid_lsg.cli import main
from sid_lsg.training.agreement import weights_digest
from tests.helpers import forked
from tests.helpers.runs import command


def test_a_digest_notices_one_changed_bit_and_a_name() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)

    first = weights_digest(network())
    assert weights_digest(network()) == first
    changed = network()
    with torch.no_grad():
        changed[0].weight.view(torch.int16)[0, 0] ^= 1  # type: ignore[index,operator,union-attr]
    assert weights_digest(changed) != first
    assert weights_digest(nn.Sequential(*network(), nn.Linear(1, 1))) != first


def inside(folder: Path, line: list[str]) -> None:
    os.chdir(folder)
    main(line)


def nodes(folders: list[Path], line: list[str]) -> tuple[list[int | None], str]:
    """Start one process per node, each in its own working directory; return statuses and log."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(forked.free_port())}
    common |= {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    log = folders[0].parent / "log"
    log.unlink(missing_ok=True)
    line = [*line, "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp_multi"]
    started = [
        forked.start(inside, folder, line, log=log, environment=common | {"NODE_RANK": str(rank)})
        for rank, folder in enumerate(folders)
    ]
    for process in started:
        process.join(60)
    alive = [process.is_alive() for process in started]
    for process in started:
        process.kill()
        process.join()
    said = log.read_text()
    assert alive == [False, False], said[-3000:]
    return [process.exitcode for process in started], said


@pytest.mark.slow
def test_nodes_with_different_checkpoints_end_with_one_message(
    small_sd: str, tmp_path: Path
) -> None:
    plain = [a for a in command(small_sd, tmp_path) if "metrics." not in a and "health." not in a]
    line = [*plain, "--image_grid.every_n_steps=0", "--trainer.default_root_dir=run"]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    # one process trains on the first node
    process = forked.start(
        inside, folders[0], [*line, "--trainer.max_steps=4"], log=tmp_path / "first"
    )
    process.join(120)
    assert process.exitcode == 0, (tmp_path / "first").read_text()
    more = [*line, "--trainer.max_steps=5", "--ckpt_path=last"]

    statuses, said = nodes(folders, more)
    assert statuses == [2, 2]
    assert said.count("error: ") == 1
    assert "error: --ckpt_path: the processes differ, " in said
    assert "(node 0): a checkpoint of iteration 4 (" in said
    assert "(node 1): no checkpoint. Put --trainer.default_root_dir on a disk that" in said
    assert "Traceback" not in said

    shutil.rmtree(folders[1] / "run", ignore_errors=True)
    shutil.copytree(folders[0] / "run", folders[1] / "run", symlinks=True)
    other = folders[1] / "run/checkpoints"
    (other / "last.ckpt").unlink()
    (other / "last.ckpt").symlink_to("0000003.ckpt")
    statuses, said = nodes(folders, more)
    assert statuses == [2, 2]
    assert "(node 1): a checkpoint of iteration 3 (" in said

    (other / "last.ckpt").unlink()
    (other / "last.ckpt").symlink_to("0000004.ckpt")  # equal copies
    statuses, said = nodes(folders, more)
    assert statuses == [0, 0], said[-3000:]
