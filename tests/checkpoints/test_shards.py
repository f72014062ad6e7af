"""Sharded checkpoints: write, verify, read by other process counts, consolidate and keep."""

import os
import pickle
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from sid_lsg.callbacks.retention import delete, keep_as, point
from sid_lsg.checkpoints import shards
from sid_lsg.checkpoints.file import save_counted
from sid_lsg.checkpoints.io import SafeCheckpointIO
from sid_lsg.checkpoints.opening import open_checkpoint
from sid_lsg.checkpoints.shards import (
    _make,
    _name,
    _write_manifest,
    joined,
    open_shares,
    save_shares,
    share,
)
from sid_lsg.commands.consolidate import consolidate
from sid_lsg.distributed.sharding import Pieces, shard_like
from sid_lsg.files.replacing import remove
from sid_lsg.messages.errors import UsageError
from tests.helpers import forked
from tests.helpers.checkpoints import damage, newest_path, opened
from tests.helpers.comparison import same
from tests.helpers.damage import Trap, flip

ROWS = {"weight": 7, "bias": 3, "tiny": 1}  # 3 processes hold 3, 3, 1; 1, 1, 1; and 1, 0, 0 rows


def content(step: int = 0) -> dict[str, Any]:
    """Return the content of a complete checkpoint."""
    numbers = torch.arange(14.0) + step
    weights = {
        "weight": numbers.view(7, 2),
        "bias": numbers[:3].clone(),
        "tiny": numbers[:1].clone(),
    }
    adam = {0: {"step": torch.tensor(float(step)), "exp_avg": weights["weight"] / 2}}
    return {
        "pytorch-lightning_version": L.__version__,
        "global_step": step,
        "loops": {"places": (1, 2)},
        "state_dict": weights | {"buffer": torch.ones(2, dtype=torch.int64)},
        "optimizer_states": [{"state": adam, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
    }


def rows(state: Any, rank: int, world: int) -> Any:
    """Return the part of a state that one process holds."""
    if isinstance(state, dict):
        cut = {n: v for n, v in state.items() if n in (*ROWS, "exp_avg")}
        size = {n: -(-len(v) // world) for n, v in cut.items()}
        mine = {n: {"sid_lsg.rows": v[size[n] * rank :][: size[n]].clone()} for n, v in cut.items()}
        return {
            name: mine[name] if name in mine else rows(state[name], rank, world) for name in state
        }
    return [rows(value, rank, world) for value in state] if isinstance(state, list) else state


def write_folder(path: Path, step: int = 0, world: int = 3) -> Path:
    """Write a sharded checkpoint as `world` processes would."""
    _make(path)
    shares = [rows(content(step), rank, world) for rank in range(world)]
    files = [save_counted(own, path / _name(rank, world)) for rank, own in enumerate(shares)]
    _write_manifest(path, files)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "checkpoints/0000002.ckpt")


# ---------------------------------------------------------------------- reading


@pytest.fixture(params=[(3, 0), (3, 1), (3, 2), (2, 1), (5, 3), (1, 0)], ids=str)
def process(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Act as one of several processes that do not communicate."""
    world, rank = request.param
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    yield world, rank
    dist.destroy_process_group()


def test_any_number_of_processes_read_their_rows(folder: Path, process: tuple[int, int]) -> None:
    world, rank = process
    mesh = init_device_mesh("cpu", (world,))
    found, whole = open_shares(folder)["state_dict"], content()["state_dict"]
    for name in ROWS:
        own = distribute_tensor(torch.empty_like(whole[name]), mesh, [Shard(0)], src_data_rank=None)
        for value in (found[name], whole[name]):
            mine = shard_like(value, own)
            chunks = whole[name].chunk(world)
            expected = chunks[rank] if rank < len(chunks) else whole[name][:0]
            assert torch.equal(mine.to_local(), expected)  # type: ignore[attr-defined]
            assert (mine.shape, mine.stride()) == (own.shape, own.stride())
            mine.to_local().zero_()  # type: ignore[attr-defined]
            assert torch.equal(whole[name], content()["state_dict"][name])


def test_an_unsharded_template_gets_the_whole_tensor(folder: Path) -> None:
    found = open_shares(folder)["state_dict"]
    assert torch.equal(
        shard_like(found["weight"], torch.empty(7, 2)), content()["state_dict"]["weight"]
    )
    assert torch.equal(shard_like(found["buffer"], None), torch.ones(2, dtype=torch.int64))


def test_reading_copies_from_the_file(folder: Path) -> None:
    """Training modifies the tensors in place; the file must not change."""
    pieces = open_shares(folder)["state_dict"]["weight"]
    pieces[0:7].zero_()
    assert same(joined(pieces), content()["state_dict"]["weight"])


def test_loading_joins_the_shards(folder: Path) -> None:
    assert same(SafeCheckpointIO().load_checkpoint(folder), content())
    found = opened(folder)
    assert isinstance(found["state_dict"]["weight"], Pieces)
    assert found["state_dict"]["weight"].shape == (7, 2)
    assert same(joined(open_shares(folder)), content())


# ---------------------------------------------------------------------- writing


@pytest.mark.parametrize("before", ["nothing", "a folder", "a file", "a link"])
def test_saving_replaces_a_path_of_the_same_name(tmp_path: Path, before: str) -> None:
    path = tmp_path / "last.ckpt"
    if before == "a folder":
        write_folder(path, step=1)
    elif before == "a file":
        torch.save(content(1), path)
    elif before == "a link":
        path.symlink_to(write_folder(tmp_path / "0000001.ckpt", step=1).name)
    save_shares(rows(content(2), 0, 1), path)
    assert same(joined(opened(path)), content(2))
    assert {"manifest.json", "shard-00000-of-00001.ckpt"} == {p.name for p in path.iterdir()}
    left = {"last.ckpt"} | ({"0000001.ckpt"} if before == "a link" else set())
    assert {p.name for p in tmp_path.iterdir()} == left


def test_a_file_replaces_a_folder(folder: Path) -> None:
    SafeCheckpointIO().save_checkpoint(content(1), folder)
    assert folder.is_file()
    assert same(opened(folder), content(1))
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def save_together(rank: int, path: Path, port: int) -> None:
    """Run as one of two processes; the second one's disk is full at the second save."""
    address = f"tcp://localhost:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for step in (1, 2):
        state = content(step)
        weights = state["state_dict"]
        for name in ROWS:
            weights[name] = distribute_tensor(weights[name], mesh, [Shard(0)])
        sharded = {name: share(state[name]) for name in ("state_dict", "optimizer_states")}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if step == 2 and rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            save_shares(state | sharded, path)
        except OSError as error:
            (path.parent / f"problem{rank}").write_text(f"{step} {error.strerror}")
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_save_that_fails_on_one_process_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path, port = tmp_path / "0000001.ckpt", forked.free_port()
    forked.together(save_together, path, port)
    for rank in (0, 1):
        assert (tmp_path / f"problem{rank}").read_text() == "2 File too large"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "problem0", "problem1"}
    assert len(list(path.glob("shard-*"))) == 2
    second = torch.load(path / "shard-00001-of-00002.ckpt", weights_only=True)
    assert second["state_dict"]["buffer"] is None  # which is not sharded
    assert same(SafeCheckpointIO().load_checkpoint(path), content(1))


def test_a_replicated_tensor_is_written_once() -> None:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        tensor = distribute_tensor(torch.ones(4), mesh, [Replicate()], src_data_rank=None)
        assert torch.equal(share(tensor), torch.ones(4))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shard", range(3))
@pytest.mark.parametrize("reader", ["verify_bytes", "open_file"])
def test_a_folder_that_a_run_replaces_meanwhile_is_of_one_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str, shard: int
) -> None:
    """Before the given shard is read, the run points last.ckpt to its next checkpoint."""
    folders = [write_folder(tmp_path / f"000000{step}.ckpt", step) for step in (1, 2)]
    last, read, original = tmp_path / "last.ckpt", list[Path](), getattr(shards, reader)
    point(last, folders[0])

    def reading(path: Path, *written: Any) -> Any:
        if len(read) == shard:
            point(last, folders[1])
            remove(folders[0])
        read.append(path)
        return original(path, *written)

    monkeypatch.setattr(shards, reader, reading)
    found = open_checkpoint(last)
    assert same(joined(found.content), content(2))
    assert found.path == last


# ---------------------------------------------------------------------- damage


def test_an_intact_folder_has_no_damage(folder: Path) -> None:
    assert damage(folder) == ""
    assert newest_path(folder.parent) == (folder, [])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("flip", "is damaged: 'shard-00001-of-00003.ckpt' is corrupted (Bad CRC-32)"),
        ("cut", "is damaged: 'shard-00001-of-00003.ckpt' is truncated or corrupted: it has "),
        ("lose", "is damaged: 'shard-00001-of-00003.ckpt' cannot be read (No such file"),
        ("other", "is damaged: 'shard-00001-of-00003.ckpt' is corrupted (Bad CRC-32)"),
        ("begin", "is incomplete: it has no manifest.json"),
        ("manifest", "is damaged: 'manifest.json' is corrupted"),
    ],
)
def test_damage_is_detected_and_skipped(folder: Path, harm: str, said: str) -> None:
    older = folder
    folder = write_folder(older.with_name("0000003.ckpt"), step=3)
    shard = folder / _name(1, 3)
    assert damage(folder) == ""
    if harm == "flip":
        flip(shard, shard.stat().st_size // 2)
    elif harm == "cut":
        os.truncate(shard, shard.stat().st_size - 1)
    elif harm == "lose":
        shard.unlink()
    elif harm == "other":  # an intact shard of another checkpoint
        shutil.copy(older / shard.name, shard)
    elif harm == "begin":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text('{"files": [{"bytes": 3}]}')
    assert damage(folder).startswith(said)
    found, (what,) = newest_path(folder.parent)
    assert found == older
    assert said in what
    with pytest.raises(UsageError, match=r"^--ckpt_path: '.*0000003.ckpt' is "):
        consolidate(str(folder), str(folder.parent / "output"))
    assert not (folder.parent / "output").exists()


def test_code_is_never_executed(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    shards = [folder / _name(rank, 3) for rank in range(3)]
    files = [save_counted(torch.load(path) | {"extra": Trap(mark)}, path) for path in shards]
    _write_manifest(folder, files)
    assert "which is not plain data" in damage(folder)
    for path in shards:
        path.write_bytes(pickle.dumps(Trap(mark)))
    assert damage(folder)
    assert not mark.exists()


# ---------------------------------------------------------------------- consolidate


def test_consolidate_writes_one_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder.parent.parent / "new/whole.ckpt"
    link = folder.with_name("last.ckpt")
    link.symlink_to(folder.name)
    consolidate(str(link), str(output))
    assert damage(output) == ""
    assert same(torch.load(output, weights_only=True), content())
    assert [path.name for path in output.parent.iterdir()] == ["whole.ckpt"]
    assert output.stat().st_size < 1.1 * _size(folder, content())

    before = output.read_bytes()
    with pytest.raises(
        UsageError, match=r"^--output: '.*whole.ckpt' exists. Give another name, or"
    ):
        consolidate(str(folder), str(output))
    assert output.read_bytes() == before
    output.write_text("old")
    consolidate(str(folder), str(output), overwrite=True)
    assert same(torch.load(output, weights_only=True), content())


def _size(folder: Path, state: dict[str, Any]) -> int:
    path = folder.with_name("expected")
    torch.save(state, path)
    return path.stat().st_size


def test_consolidate_rejects_unusable_input(folder: Path) -> None:
    file = folder.with_name("file.ckpt")
    torch.save(content(), file)
    output = str(folder.with_name("output"))
    with pytest.raises(UsageError, match="--ckpt_path: '.*file.ckpt' is already one file"):
        consolidate(str(file), output)
    with pytest.raises(UsageError, match="--ckpt_path: '.*none' does not exist"):
        consolidate(str(folder / "none"), output)
    with pytest.raises(UsageError, match="--output: '.*' is a folder. Give a file's name"):
        consolidate(str(folder), str(folder))
    with pytest.raises(UsageError, match=r"--output: cannot write to '.*file.ckpt' \(File exists"):
        consolidate(str(folder), str(file / "output"))


def anonymous_memory() -> int:
    """Return this process's memory that is not backed by files, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) >> 10
    return 0


def big(path: Path, mebibytes: int = 256) -> Tensor:
    """Write a checkpoint with large shards."""
    weight = torch.rand(4, mebibytes << 16)
    state = content() | {"state_dict": {"weight": weight}}
    _make(path)
    files = [save_counted(rows(state, rank, 2), path / _name(rank, 2)) for rank in (0, 1)]
    _write_manifest(path, files)
    torch.save(state, path.with_name("file"))
    return weight


@pytest.mark.slow
def test_large_files_need_little_memory(tmp_path: Path) -> None:
    weight, output = big(tmp_path / "0000001.ckpt"), tmp_path / "output"
    before = anonymous_memory()
    found = SafeCheckpointIO().load_checkpoint(tmp_path / "file")
    assert anonymous_memory() - before < 64
    assert torch.equal(found["state_dict"]["weight"], weight)
    (tmp_path / "file").unlink()  # retention may delete it before it has been read
    assert torch.equal(found["state_dict"]["weight"], weight)
    before = anonymous_memory()
    consolidate(str(tmp_path / "0000001.ckpt"), str(output))
    assert anonymous_memory() - before < 64
    assert torch.equal(torch.load(output, mmap=True)["state_dict"]["weight"], weight)


# ---------------------------------------------------------------------- links and copies


def test_links_keep_deleted_checkpoints(folder: Path) -> None:
    best, last = folder.with_name("best.ckpt"), folder.with_name("last.ckpt")
    point(last, folder)
    keep_as(last, best)
    assert best.is_dir()
    assert not best.is_symlink()
    for path in folder.iterdir():
        assert (best / path.name).stat().st_ino == path.stat().st_ino
    newer = write_folder(folder.with_name("0000003.ckpt"), step=3)
    point(last, newer)
    delete(folder, named=str(folder))
    assert folder.exists()
    delete(folder, named=None)
    assert not folder.exists()
    assert same(joined(opened(best)), content())
    keep_as(newer, best)
    assert same(joined(opened(best)), content(3))
    assert {p.name for p in folder.parent.iterdir()} == {"0000003.ckpt", "best.ckpt", "last.ckpt"}


def test_checkpoints_are_copied_where_links_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "not here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    last = folder.with_name("last.ckpt")
    for _ in range(2):  # first nothing exists, then a folder
        point(last, folder)
        assert last.is_dir()
        assert not last.is_symlink()
        assert same(joined(opened(last)), content())
