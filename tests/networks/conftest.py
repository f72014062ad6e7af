"""Fixtures of the network tests."""

from pathlib import Path
from typing import Any

import pytest

from sid_lsg.callbacks import Checkpoint
from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.training.module import SiDLSG
from tests.helpers.adapters import BOTH, PROMPTS, Fit, make, trainer_of


@pytest.fixture
def fit(small_sd: str, tmp_path: Path) -> Fit:
    """Return a function that trains adapters of the tiny pipeline for some iterations."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def run(
        steps: int = 2, save: bool = False, ckpt_path: str | None = None, **options: Any
    ) -> SiDLSG:
        module = make(small_sd, **BOTH | options)
        trainer = trainer_of(tmp_path, steps, *([Checkpoint(every_n_steps=1)] if save else []))
        data = PromptDataModule(str(prompts), batch_size=4, num_workers=0)
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        return module

    return run
