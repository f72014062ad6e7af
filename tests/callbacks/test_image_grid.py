"""Image grids: when they are written, and the prompts that they show."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sid_lsg.callbacks import ImageGrid
from sid_lsg.callbacks.prompts import spread
from sid_lsg.images.pixels import grid
from sid_lsg.messages.errors import UsageError
from sid_lsg.training.module import SiDLSG
from tests.helpers.callback_runs import PROMPTS, Files, Run, fit, pixels


def test_grids_are_written_at_the_start_and_on_schedule(run: Run) -> None:
    names = sorted(path.name for path in (run.root / "grids").iterdir())
    assert names == [f"step-{step:07d}.png" for step in (0, 2, 4)]
    prompts, module = [*PROMPTS, PROMPTS[0]], run.module

    def picture(network: torch.nn.Module) -> np.ndarray:
        latents = module.generate(prompts, range(4), network=network)
        return np.asarray(grid(module.teacher.decode(latents)))

    start, middle, end = (pixels(run.root / "grids" / name) for name in names)
    assert np.array_equal(start, picture(module.teacher.network))
    assert np.array_equal(end, picture(module.ema))
    assert not np.array_equal(start, middle)
    assert not np.array_equal(middle, end)


def test_a_grid_shows_custom_prompts(small_sd: str, files: Files, tmp_path: Path) -> None:
    own = ["a red dress", "a boot"]
    options = {"max_steps": 1, "lr": 0.0}
    fit(small_sd, files, tmp_path, ImageGrid(1, num_images=3, prompts=own), **options)  # type: ignore[arg-type]
    module = SiDLSG(small_sd)
    expected = grid(module.teacher.decode(module.generate([*own, own[0]], range(3))))
    assert np.array_equal(pixels(tmp_path / "grids" / "step-0000001.png"), np.asarray(expected))


@pytest.mark.parametrize("prompts", [[], ["a", "b", "c"]])
def test_more_prompts_than_cells_are_rejected(prompts: list[str]) -> None:
    with pytest.raises(
        UsageError, match=r"--image_grid\.prompts must be a list of 1 to 2 .*, got \d"
    ):
        ImageGrid(num_images=2, prompts=prompts)


def test_prompts_are_spread_evenly() -> None:
    assert spread(list("abcdefgh"), 4) == list("aceg")
    assert spread(list("abcde"), 3) == list("abd")
    assert spread(list("abc"), 3) == list("abc")
    assert spread(list("ab"), 5) == list("ababa")
