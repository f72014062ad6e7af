"""Reject optimizers that cannot be created or cannot step, before anything is written."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adafactor, AdamW, SparseAdam
from transformers import Adafactor as Untyped

from sid_lsg.cli import main
from sid_lsg.messages.errors import UsageError
from sid_lsg.optimizers.adam import AdamWithoutMomentum
from sid_lsg.optimizers.adam8bit import Adam8bit
from sid_lsg.training.optimizer_options import check_shards, check_steps, make_optimizer
from sid_lsg.training.strategies import FSDP2Strategy, MultiNetDDPStrategy

WEIGHTS = [nn.Parameter(torch.zeros(2, 3, 3, 3))]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (partial(AdamW, lr=-1.0), "cannot be created .Invalid learning rate"),
        (partial(AdamW, rate=1.0), "unexpected keyword argument 'rate'"),
        (partial(Untyped, lr=1e-3, eps=1e-8, relative_step=False), r"eps must be 2 values"),
        (partial(AdamWithoutMomentum, betas=(0.9, 0.999)), "needs betas"),
    ],
)
def test_an_invalid_optimizer_is_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        make_optimizer(make, WEIGHTS, "model.optimizer_fake")
    assert str(error.value).startswith("--model.optimizer_")


@pytest.mark.parametrize("make", [SGD, AdamW, Adafactor, Untyped, Adam8bit, AdamWithoutMomentum])
def test_valid_optimizers_are_created(make: Any) -> None:
    assert type(make_optimizer(make, WEIGHTS, "model.optimizer_fake")) is make


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            LBFGS,
            r"LBFGS fails in its first step on cpu \(.*'closure'\)\. Choose another --a\.class",
        ),
        (SparseAdam, r"SparseAdam fails .* does not support dense gradients"),
        (partial(AdamW, lr=-1.0), "cannot be created"),
    ],
)
def test_an_optimizer_that_cannot_step_is_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"^--a: .*{said}"):
        check_steps({"b": SGD, "a": make}, torch.device("cpu"))


@pytest.mark.gpu
def test_a_trial_step_uses_only_its_own_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    found: list[int] = []

    class Noting(SGD):
        def step(self, closure: Any = None) -> Any:
            found.append(torch.cuda.current_device())
            return super().step(closure)

    check_steps({"a": Noting}, torch.device("cuda", 1))
    assert found == [1]
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("command", ["estimate", "benchmark"])
def test_estimate_and_benchmark_reject_optimizers_too(
    command: str, tmp_path: Path, small_sd: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "made.json"
    with pytest.raises(SystemExit) as end:
        main([command, f"--model.teacher={small_sd}", f"--{command}.output={output}",
              "--model.optimizer_fake=torch.optim.SparseAdam"])  # fmt: skip
    assert end.value.code == 2
    assert "error: --model.optimizer_fake: SparseAdam fails" in capsys.readouterr().err
    assert not output.exists()


def test_adam8bit_is_rejected_for_sharded_weights() -> None:
    plain, eight = AdamWithoutMomentum(WEIGHTS), Adam8bit(WEIGHTS)
    check_shards([plain], FSDP2Strategy())
    check_shards([eight], MultiNetDDPStrategy())
    with pytest.raises(UsageError, match=r"fsdp2 .* Adam8bit does not support\. Choose ddp_multi"):
        check_shards([plain, eight], FSDP2Strategy())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.optimizer_fake.lr=-1"], "--model.optimizer_fake: "),
        (["--model.optimizer_generator=torch.optim.LBFGS"], "--model.optimizer_generator: LBFGS"),
        (
            ["--model.optimizer_generator=sid_lsg.optimizers_8bit.Adam8bit",
             "--trainer.strategy=fsdp2"],
            "--trainer.strategy fsdp2",
        ),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_a_rejected_run_writes_nothing(
    options: list[str],
    said: str,
    small_sd: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\ntwo dogs\n")
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--model.teacher={small_sd}", f"--data.prompts={tmp_path / 'prompts.txt'}",
              "--data.batch_size=2", "--trainer.accelerator=cpu", "--trainer.max_steps=1",
              f"--trainer.default_root_dir={tmp_path / 'run'}", *options])  # fmt: skip
    assert end.value.code == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
