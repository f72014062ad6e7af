"""Exported generators are recognised by their schedulers, those of earlier versions too."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from sid_lsg.export.exported import exported, read_exported
from sid_lsg.export.scheduler import SiDScheduler
from sid_lsg.files.sources import locate

BETAS = [0.001 + 0.0001 * i for i in range(26)]
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
EULER |= {"trained_betas": BETAS, "num_train_timesteps": 26}
BEFORE = {"_class_name": "SiDScheduler", "trained_betas": BETAS, "num_train_timesteps": 26}
BEFORE |= {"prediction_type": "epsilon", "num_steps": 4}


def test_folders_of_earlier_versions_are_recognised(tmp_path: Path) -> None:
    assert exported(EULER)[:2] == (25, 1)
    assert exported(BEFORE)[:2] == (25, 4)  # written before `t_init` existed
    assert SiDScheduler.from_config(BEFORE).timesteps.tolist() == [25, 18, 12, 6]
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(BEFORE))
    assert read_exported(locate(str(tmp_path)))[:2] == (25, 4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"trained_betas": BETAS, "num_train_timesteps": 26, "num_steps": 2}, (25, 2)),
        ({"prediction_type": "flow_prediction", "num_train_timesteps": 1000}, None),
        (
            {"prediction_type": "flow_prediction", "num_train_timesteps": 1000, "t_init": 900},
            (900, 1),
        ),
    ],
)
def test_a_saved_scheduler_is_recognised(
    options: dict[str, Any], expected: tuple[int, int] | None, tmp_path: Path
) -> None:
    SiDScheduler(**options).save_pretrained(tmp_path / "scheduler")
    found = read_exported(locate(str(tmp_path)))
    assert (found and found[:2]) == expected


def test_other_schedulers_are_not_exports(tmp_path: Path) -> None:
    for scheduler in (
        DDPMScheduler(),
        DDPMScheduler(trained_betas=BETAS, num_train_timesteps=26),
        EulerDiscreteScheduler(timestep_spacing="trailing"),
        FlowMatchEulerDiscreteScheduler(),
    ):
        assert exported(dict(scheduler.config)) is None
    assert read_exported(locate(str(tmp_path))) is None
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("[")
    assert read_exported(locate(str(tmp_path))) is None


@pytest.mark.parametrize("t_init", [999, 500])
def test_flow_times_follow_the_grid(t_init: int) -> None:
    """t_i = t_init / 999 (1 - i / K); the pipeline receives 1000 t_i, and starts at 1."""
    scheduler = SiDScheduler(1000, None, "flow_prediction", 4, t_init)
    first = 1000 * t_init / 999
    times = [first, first * 0.75, first * 0.5, first * 0.25]
    assert scheduler.timesteps.tolist() == pytest.approx([1000] * (t_init < 999) + times)
    assert scheduler.init_noise_sigma == 1
    assert scheduler.scales(250.0) == (0.75, 0.25)
    with pytest.raises(ValueError, match=f"must be 1 to {t_init}"):
        scheduler.set_timesteps(t_init + 1)
