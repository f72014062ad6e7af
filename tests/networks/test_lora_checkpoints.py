"""Checkpoints of adapters: what they contain, and which runs may continue from them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sid_lsg.checkpoints.opening import require_checkpoint
from sid_lsg.checkpoints.resume import check_resume
from sid_lsg.export.folder import save_pipeline
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.lora import LoRA
from sid_lsg.options.training import Adapters, InitialWeights, Memory
from tests.helpers.adapters import ADAPTERS, BOTH, Fit, call, make


@pytest.mark.slow
def test_checkpoints_contain_only_adapters_and_resume_bitwise(fit: Fit, tmp_path: Path) -> None:
    whole = fit(4)
    fit(2, save=True)
    path = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(path, weights_only=True)
    assert len(saved["state_dict"]) == 3 * 48
    assert all(".lora_" in name for name in saved["state_dict"])
    assert [len(state["state"]) for state in saved["optimizer_states"]] == [48, 48]
    resumed = fit(4, ckpt_path=str(path))
    assert resumed.state_dict().keys() == saved["state_dict"].keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert torch.equal(call(whole, whole.ema), call(resumed, resumed.ema))


@pytest.mark.slow
def test_checkpoints_of_other_networks_are_rejected(
    fit: Fit, small_sd: str, tmp_path: Path
) -> None:
    fit(1, save=True)
    last, plain = (str(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("last", "plain"))
    os.rename(os.path.realpath(last), str(tmp_path / "adapters.ckpt"))
    fit(1, save=True, lora=Adapters())
    os.rename(os.path.realpath(last), plain)
    last = str(tmp_path / "adapters.ckpt")

    def refused(path: str, message: str, **options: Any) -> None:
        module = make(small_sd, **options)
        with pytest.raises(UsageError, match=message):
            check_resume(require_checkpoint(path), module)
        with pytest.raises(UsageError, match=message):
            module.load_state_dict(torch.load(path, weights_only=True)["state_dict"])

    check_resume(require_checkpoint(last), make(small_sd, **BOTH))
    names = r"fake_score\.down_blocks\.0.*lora_A\.default\.weight"
    shapes = r"is \[4, 8\] in the file and \[3, 8\].*Give the --model.lora.fake_score of its"
    refused(last, f"'{names}' {shapes}", lora=replace(ADAPTERS, fake_score=LoRA(3)))
    few = r"'fake_score.*to_k.*absent from this run.*Give the --model.lora.fake_score"
    refused(last, few, lora=replace(ADAPTERS, fake_score=LoRA(4, targets=["to_q"])))
    refused(last, "adapters of 'fake_score', but all its weights.*--model.lora.fake_score")
    one = {"lora": Adapters(fake_score=LoRA(4))}
    refused(last, "adapters of 'generator', but all its weights.*--model.lora.generator", **one)
    refused(
        plain, "all weights of 'fake_score'.*--model.lora.fake_score trains only adapters", **BOTH
    )
    one = {"lora": Adapters(generator=LoRA(4))}
    refused(plain, "all weights of 'generator'.*--model.lora.generator trains only adapters", **one)
    with pytest.raises(UsageError, match="--model.lora.generator.alpha is 1 times .* 3 times"):
        fit(2, ckpt_path=last, lora=replace(ADAPTERS, generator=LoRA(2)))


@pytest.mark.slow
def test_adapters_of_other_base_weights_are_rejected(
    fit: Fit, small_sd: str, tmp_path: Path
) -> None:
    """Names and shapes are the same, so only the recorded fingerprint shows the difference."""
    teacher = make(small_sd).teacher
    with torch.no_grad():
        for p in teacher.network.parameters():
            p.mul_(1.1)
    save_pipeline(teacher, teacher.network, tmp_path / "base", 625)
    own = {"init": InitialWeights(generator=str(tmp_path / "base"))}
    fit(1, save=True, **own)
    path = str(tmp_path / "checkpoints" / "last.ckpt")
    message = "adapters of 'generator' .* other weights .*--model.init.generator"
    with pytest.raises(UsageError, match=message):
        check_resume(require_checkpoint(path), make(small_sd, **BOTH))
    with pytest.raises(UsageError, match=message):
        fit(2, ckpt_path=path)
    half = Memory(frozen_precision="bf16")
    check_resume(require_checkpoint(path), make(small_sd, **BOTH, **own, memory=half))
    fit(2, ckpt_path=path, **own)
