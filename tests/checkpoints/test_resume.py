"""Reject checkpoints of another run before anything is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sid_lsg.callbacks import Checkpoint
from sid_lsg.checkpoints.record import RECORD, SCHEMA
from sid_lsg.checkpoints.resume import check_finite, check_optimizers, open_resumed
from sid_lsg.cli import main
from sid_lsg.distributed.sharding import Pieces
from sid_lsg.messages.errors import UsageError
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from tests.helpers.checkpoint_runs import change, contents, fit, load, refused


@pytest.mark.slow
def test_a_checkpoint_records_its_schema_and_config(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    folder = tmp_path / "run/checkpoints"
    record = load(folder / "last.ckpt")[RECORD]
    assert record["schema"] == SCHEMA == 1
    assert record["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "torch", "lightning", "diffusers", "transformers"} <= record[
        "versions"
    ].keys()
    assert record["config"] == yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert record["config"]["data"]["batch_size"] == 1

    # A record of a newer version is rejected; a checkpoint without a record is accepted.
    change(folder / "0000003.ckpt", lambda found: found[RECORD].update(schema=SCHEMA + 1))
    before = contents(tmp_path)
    message = refused(command, capsys, "--ckpt_path=last")
    assert "has schema 2, and this version reads up to 1. Continue with the version" in message
    assert contents(tmp_path) == before
    change(folder / "0000003.ckpt", lambda found: found.pop(RECORD))
    main([*command, "--ckpt_path=last", "--trainer.max_steps=4"])
    assert load(folder / "last.ckpt")["global_step"] == 4


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture_is_rejected(
    command: list[str], copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reshape(found: dict[str, Any]) -> None:
        weights = found["state_dict"]
        weights["generator.conv_in.weight"] = weights["generator.conv_in.weight"][:3].clone()

    path = copied / "checkpoints/0000006.ckpt"
    change(path, reshape)
    before = contents(copied.parent)
    message = refused(command, capsys, "--ckpt_path=last")
    assert "'generator.conv_in.weight' is [3, 4, 3, 3] in the file and [" in message
    change(path, lambda found: found["state_dict"].update(extra=torch.zeros(2, 3)))
    assert "'extra' is [2, 3] in the file and absent from this teacher" in refused(
        command, capsys, f"--ckpt_path={path}"
    )
    assert {p: b for p, b in contents(copied.parent).items() if ".ckpt" not in p} == {
        p: b for p, b in before.items() if ".ckpt" not in p
    }


@pytest.mark.slow
def test_optimizer_states_of_another_model_are_rejected(
    small_sd: str, copied: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def reshape(found: dict[str, Any]) -> None:
        found["optimizer_states"][1]["state"][0]["exp_avg"] = torch.zeros(7)

    path = copied / "checkpoints/0000004.ckpt"
    change(path, reshape)
    message = r"'exp_avg' of optimizer 2's weight 0 is \[7\] in the file and \["
    with pytest.raises(UsageError, match=message):
        fit(small_sd, copied, Checkpoint(), ckpt_path=str(path))
    before = contents(copied)
    assert "'exp_avg' of optimizer 2's weight 0 is [7]" in refused(
        command, capsys, f"--ckpt_path={path}"
    )
    assert contents(copied) == before

    adam = torch.optim.Adam([torch.zeros(2), torch.zeros(3)])
    other = torch.optim.Adam([torch.zeros(2)])
    with pytest.raises(UsageError, match="contains 1 optimizers, not 2"):
        check_optimizers([adam, adam], [adam.state_dict()])
    with pytest.raises(UsageError, match=r"groups of \[1\] weights in the file and \[2\] here"):
        check_optimizers([adam], [other.state_dict()])
    own = AdamWithoutMomentum([torch.zeros(2)])
    check_optimizers([own], [other.state_dict()], ["Adam"])
    message = "optimizer 1 is AdamWithoutMomentum in the file and Adam here"
    with pytest.raises(UsageError, match=message):
        check_optimizers([other], [own.state_dict()], ["AdamWithoutMomentum"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["generator", "fake_score", "ema", "exp_avg", "exp_avg_sq"])
def test_a_checkpoint_with_a_number_that_is_not_finite_is_rejected(
    run: Path, place: str, value: float
) -> None:
    """By name, in the weights and in the optimizers' states."""
    found = open_resumed(str(run / "checkpoints/0000004.ckpt"), run)
    assert found is not None
    check_finite(found.content, "the file")
    if place.startswith("exp"):
        states: Any = found.content["optimizer_states"]
        tensors, name, said = states[1]["state"][0], place, f"{place!r} of optimizer 2's weight 0"
    else:
        tensors = found.content["state_dict"]
        name = next(name for name in tensors if name.startswith(f"{place}."))
        said = f"the weight {name!r} in 'the file'"
    whole = tensors[name]
    broken = whole.clone()
    broken[(-1,) * broken.dim()] = value
    for stored in (broken, Pieces([whole[:1], broken[1:]])):  # in one file, or in shards
        tensors[name] = stored
        with pytest.raises(UsageError) as error:
            check_finite(found.content, "the file")
        assert str(error.value).startswith(f"--ckpt_path: {said}")
        assert str(error.value).endswith("is damaged. Give an earlier checkpoint.")


@pytest.mark.slow
def test_fit_does_not_continue_from_weights_that_are_not_finite(
    copied: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(found: dict[str, Any]) -> None:
        found["state_dict"]["fake_score.conv_in.bias"][0] = torch.nan

    for name in ("last", "0000006"):
        change((copied / f"checkpoints/{name}.ckpt").resolve(), spoil)
    before = contents(copied)
    for given in ("last", str(copied), str(copied / "checkpoints/0000006.ckpt")):
        message = refused(
            command, capsys, f"--ckpt_path={given}", "--data.batch_size=2", "--trainer.max_steps=8"
        )
        assert "--ckpt_path: the weight 'fake_score.conv_in.bias' in " in message
    assert contents(copied) == before


def test_ckpt_path_best_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--ckpt_path best: name the file, for example .*best.ck"):
        open_resumed("best", tmp_path)
