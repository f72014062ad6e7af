"""Learning-rate schedules: their values, in training, after a resume, and what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau

from sid_lsg.callbacks import Checkpoint
from sid_lsg.cli import main
from sid_lsg.messages.errors import UsageError
from sid_lsg.optimizers import WarmUp
from sid_lsg.training.module import SiDLSG
from tests.helpers.comparison import weights
from tests.helpers.modules import adam

LR = 1e-4


def rates(make: Callable[[Any], Any], count: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_warms_up_and_falls() -> None:
    assert rates(partial(WarmUp, warmup_iterations=3), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    falling = partial(WarmUp, warmup_iterations=1, total_iterations=5)
    assert rates(partial(falling, shape="linear"), 7) == [0.5, 1, 0.75, 0.5, 0.25, 0, 0]
    expected = [0.5, 1, 0.8535534, 0.5, 0.1464466, 0, 0]
    assert rates(partial(falling, shape="cosine"), 7) == pytest.approx(expected, abs=1e-6)
    assert rates(WarmUp, 2) == [1, 1]


class Rates(SiDLSG):
    """Record the learning rate of every optimizer step, by network."""

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.rates: dict[str, list[float]] = {"fake": [], "generator": []}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        (group,) = optimizer.param_groups
        fake = group["params"][0] is next(self.fake_score.parameters())
        self.rates["fake" if fake else "generator"].append(group["lr"])


SCHEDULES = {
    "warm-up": (partial(WarmUp, warmup_iterations=2, total_iterations=6, shape="cosine"), None),
    "cosine": (None, partial(CosineAnnealingLR, T_max=5)),
    "both": (
        partial(OneCycleLR, max_lr=1e-3, total_steps=8),
        partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.5),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.slow
def test_a_resumed_run_continues_its_schedules(
    fit: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    fake, generator = SCHEDULES[name]
    options = {"lr_scheduler_fake": fake, "lr_scheduler_generator": generator, "module": Rates}
    # Two steps of the fake score per iteration: schedules count iterations.
    options |= {"fake_steps": 2}
    whole = fit(steps=4, **options)
    expected = {"fake": [], "generator": []}
    for key, make in (("fake", fake), ("generator", generator)):
        one = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=LR, betas=(0.0, 0.999))
        schedule = make(one) if make else None
        for _ in range(4):
            expected[key] += [one.param_groups[0]["lr"]] * (2 if key == "fake" else 1)
            one.step()
            if schedule:
                schedule.step()
    assert whole.rates == expected
    first = fit(steps=2, callbacks=[Checkpoint(every_n_steps=2)], **options)
    path = str(tmp_path / "checkpoints/last.ckpt")
    second = fit(steps=4, callbacks=[Checkpoint(every_n_steps=2)], ckpt_path=path, **options)
    for key, found in expected.items():
        assert first.rates[key] + second.rates[key] == found
    for network in ("fake_score", "generator", "ema"):
        ours, theirs = (weights(getattr(module, network)) for module in (second, whole))
        assert torch.equal(ours, theirs), network


@pytest.mark.slow
def test_other_schedules_have_an_effect_after_a_resume(
    fit: Callable[..., Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"module": Rates}
    warm = partial(WarmUp, warmup_iterations=8)
    fit(steps=2, callbacks=[Checkpoint(every_n_steps=2)], lr_scheduler_generator=warm, **options)
    path = str(tmp_path / "checkpoints/last.ckpt")
    for steps, schedule, wanted in (
        (3, partial(WarmUp, warmup_iterations=4), 3 / 5 * LR),
        (4, None, LR),
        (5, warm, 5 / 9 * LR),
    ):
        callbacks = [Checkpoint(every_n_steps=1)]
        options["lr_scheduler_generator"] = schedule
        module = fit(steps=steps, callbacks=callbacks, ckpt_path=path, **options)
        assert module.rates["generator"] == pytest.approx([wanted])


def test_schedules_that_cannot_be_used_are_refused(small_sd: str) -> None:
    for make, message in (
        (ReduceLROnPlateau, "ReduceLROnPlateau does not depend on the iteration alone"),
        (partial(OneCycleLR, max_lr=1.0), "cannot be created"),
        (partial(WarmUp, warmup_iterations=-1), "at least 0"),
        (partial(WarmUp, shape="linear"), "total_iterations must be more than"),
    ):
        module = SiDLSG(
            small_sd, optimizer_fake=adam, optimizer_generator=adam, lr_scheduler_fake=make
        )
        with pytest.raises(UsageError, match=message):
            module.configure_optimizers()


def test_schedules_are_options(small_sd: str, tmp_path: Path) -> None:
    prompts, root = tmp_path / "prompts.txt", tmp_path / "run"
    prompts.write_text("a red cat\ntwo dogs")
    name = "--model.lr_scheduler_generator"
    main(
        [
            "fit", f"--model.teacher={small_sd}", f"--data.prompts={prompts}",
            "--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=2",
            "--trainer.accelerator=cpu", f"--trainer.default_root_dir={root}",
            "--trainer.log_every_n_steps=1", "--progress.refresh_rate=0",
            f"{name}=sid_lsg.optimizers.WarmUp", f"{name}.warmup_iterations=3",
        ]
    )  # fmt: skip
    head, *rows = (root / "metrics.csv").read_text().splitlines()
    place = head.split(",").index("lr_generator")
    assert [float(row.split(",")[place]) for row in rows] == pytest.approx([2.5e-7, 5e-7])
