"""Fixtures of the training tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sid_lsg.data.prompts import PromptDataModule
from sid_lsg.training.module import SiDLSG
from tests.helpers.modules import PROMPTS, adam


@pytest.fixture
def fit(small_sd: str, tmp_path: Path) -> Callable[..., SiDLSG]:
    """Return a function that trains the tiny pipeline for some iterations."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))

    def run(
        steps: int = 2,
        batch_size: int = 4,
        callbacks: list[L.Callback] | None = None,
        ckpt_path: str | None = None,
        logger: Any = False,
        module: type[SiDLSG] = SiDLSG,
        real_images: str | None = None,
        precision: Any = "32-true",
        **options: Any,
    ) -> SiDLSG:
        options = {"optimizer_fake": adam, "optimizer_generator": adam} | options
        trained = module(small_sd, **options)
        trainer = L.Trainer(
            accelerator="cpu",
            precision=precision,
            max_steps=steps,
            max_epochs=-1,
            callbacks=callbacks,
            logger=logger,
            log_every_n_steps=1,
            default_root_dir=tmp_path,
            enable_checkpointing=bool(callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        data = PromptDataModule(
            str(prompts), batch_size=batch_size, num_workers=0, real_images=real_images
        )
        trainer.fit(trained, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
        assert trainer.global_step == steps
        return trained

    return run
