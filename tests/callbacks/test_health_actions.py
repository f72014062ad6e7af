"""What Health does about a failure: stop, or return to the last good checkpoint."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from sid_lsg.callbacks import Checkpoint, Export
from sid_lsg.callbacks.health import Health
from sid_lsg.messages.errors import TrainingStopped, UsageError
from sid_lsg.options.guidance import Guidance
from sid_lsg.training.module import SiDLSG
from tests.helpers.health_runs import BATCH, NoNoise, OneImage, Shaken, fit, health, rows, step_of


class AlwaysShaken(Shaken):
    shaken = tuple(range(1, 100))


@pytest.mark.slow
def test_stop_saves_the_current_state_and_ends(tiny: Callable[..., SiDLSG], tmp_path: Path) -> None:
    watch = Health(instability_action="stop")
    with pytest.raises(TrainingStopped) as stopped:
        tiny(watch, Checkpoint(every_n_steps=3), Export())
    folder = tmp_path / "checkpoints"
    assert str(stopped.value).startswith("instability at iteration 4, 16 images seen: update_rat")
    assert str(stopped.value).endswith(f"the current state is {folder / '0000004.ckpt'}.")
    assert (step_of(folder / "last.ckpt"), step_of(folder / "0000004.ckpt")) == (4, 4)
    assert not (tmp_path / "generator").exists()
    # the row of the failure is logged
    assert [int(row["step"]) for row in rows(tmp_path)] == [2, 4]


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1])
def test_keep_good_returns_to_the_last_good_checkpoint(
    tiny: Callable[..., SiDLSG], tmp_path: Path, keep: int
) -> None:
    """Retention deletes iteration 2's own file at iteration 3, before the failure is seen."""
    watch = Health(instability_action="keep_good")
    with pytest.raises(TrainingStopped) as stopped:
        tiny(watch, Checkpoint(every_n_steps=1, keep=keep), Export())
    folder = tmp_path / "checkpoints"
    assert "at iteration 4, 16 images seen" in str(stopped.value)
    assert str(stopped.value).endswith(f"the last good checkpoint, {folder / 'good.ckpt'}.")
    assert (folder / "last.ckpt").readlink() == Path("good.ckpt")
    assert step_of(folder / "last.ckpt") == 2
    assert not (folder / "0000004.ckpt").exists()
    assert not (tmp_path / "generator").exists()
    # A continued run may fail again before it saves anything, or end without a failure.
    again = (Health(instability_action="keep_good"), Checkpoint(every_n_steps=5, keep=keep))
    with pytest.raises(TrainingStopped, match="at iteration 4, .* the last good checkpoint"):
        tiny(*again, ckpt_path="last")
    assert step_of(folder / "last.ckpt") == 2
    tiny(Health(), Checkpoint(every_n_steps=5, keep=keep), module=SiDLSG, ckpt_path="last")
    assert (step_of(folder / "last.ckpt"), step_of(folder / "good.ckpt")) == (8, 8)


@pytest.mark.slow
def test_a_good_checkpoint_of_a_later_iteration_is_not_used(
    tiny: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    """A run that continues from an earlier checkpoint ignores the later ones."""
    tiny(Health(), Checkpoint(every_n_steps=1, keep=-1), module=SiDLSG)
    folder = tmp_path / "checkpoints"
    assert step_of(folder / "good.ckpt") == 8
    again = (Health(instability_action="keep_good"), Checkpoint(every_n_steps=5, keep=-1))
    with pytest.raises(TrainingStopped, match=r"at iteration 4.*no earlier checkpoint that"):
        tiny(*again, ckpt_path=str(folder / "0000002.ckpt"))
    assert (folder / "last.ckpt").readlink() != Path("good.ckpt")


@pytest.mark.slow
def test_good_is_the_judged_state(tiny: Callable[..., SiDLSG], tmp_path: Path) -> None:
    good = tmp_path / "checkpoints/good.ckpt"
    watch = Health(every_n_images=BATCH)  # judges nothing here: it has no CLIP model
    tiny(watch, Checkpoint(every_n_steps=2), module=SiDLSG, max_steps=5)
    assert (step_of(good), step_of(good.with_name("last.ckpt"))) == (4, 5)
    tiny(Health(), Checkpoint(every_n_steps=9), module=SiDLSG, max_steps=6)  # saved at the end
    assert step_of(good) == 6
    assert not list(tmp_path.rglob("*.tmp"))


def test_good_works_without_hard_links(
    tiny: Callable[..., SiDLSG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: Any) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr("os.link", link)
    tiny(Health(), Checkpoint(every_n_steps=2), module=SiDLSG, max_steps=2)
    assert step_of(tmp_path / "checkpoints/good.ckpt") == 2


@pytest.mark.slow
def test_a_continued_run_restores_its_baseline(
    tiny: Callable[..., SiDLSG], small_sd: str, tmp_path: Path
) -> None:
    """Without a baseline, any first row would count as healthy and become `good.ckpt`."""
    watch = Health()
    past = {"loss_fake": [1.0, math.inf]}
    watch.load_state_dict({"failed": {"instability": 2}, "past": past})
    kept = watch.state_dict()
    assert kept["failed"] == {"collapse": 0, "misalignment": 0, "instability": 2}
    assert kept["past"]["loss_fake"] == past["loss_fake"]
    tiny(Health(), Checkpoint(every_n_steps=5), max_steps=10)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    (state,) = [v for k, v in saved["callbacks"].items() if k.startswith("Health")]
    assert len(state["past"]["loss_fake"]) > 0

    for guidance, expected in ((Guidance("none"), state["past"]), (Guidance(scale=2.0), {})):
        watch = Health()
        watch.setup(L.Trainer(logger=False), SiDLSG(small_sd, guidance=guidance), "fit")
        watch.load_state_dict(state)
        found = watch.state_dict()["past"]
        assert {name: values for name, values in found.items() if values} == expected


def test_keep_good_without_a_good_checkpoint_says_so(
    tiny: Callable[..., SiDLSG], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/good.ckpt").touch()  # of another run
    watch = Health(instability_action="keep_good")
    with pytest.raises(TrainingStopped, match="there is no earlier checkpoint"):
        tiny(watch, Checkpoint(every_n_steps=9), module=AlwaysShaken)
    assert not (tmp_path / "checkpoints/last.ckpt").exists()


@pytest.mark.slow
def test_stop_and_keep_good_together_save_nothing_bad(tmp_path: Path) -> None:
    watch = health(collapse_action="stop", misalignment_action="keep_good")
    with pytest.raises(TrainingStopped, match="(?s)collapse.*misalignment.*no earlier checkpoint"):
        # The probe comes before the last iteration, which is always saved first.
        fit(tmp_path, watch, Checkpoint(every_n_steps=9), module=OneImage, max_steps=5)
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.slow
def test_a_failing_probe_is_not_good(tmp_path: Path) -> None:
    fit(tmp_path, health(), Checkpoint(every_n_steps=1, keep=0), module=NoNoise)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_actions_that_save_need_checkpoints(tmp_path: Path) -> None:
    for action in ("stop", "keep_good"):
        with pytest.raises(UsageError, match=r"--health.instability_action: .* needs checkpoints"):
            fit(tmp_path, Health(instability_action=action))  # type: ignore[arg-type]
