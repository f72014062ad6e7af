"""TF32 is off on a GPU unless enabled."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest
import torch

from sid_lsg.benchmark.runs import fit
from sid_lsg.cli import main
from sid_lsg.messages.errors import UsageError
from sid_lsg.networks.precision import allow_tf32, check_bf16, tf32
from sid_lsg.options.training import Compute
from sid_lsg.training.module import SiDLSG

BACKENDS: Any = (torch.backends.cuda.matmul, torch.backends.cudnn)


def allowed() -> list[bool]:
    return [backend.allow_tf32 for backend in BACKENDS]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with tf32(False):
        yield


def test_tf32_restores_the_settings() -> None:
    BACKENDS[1].allow_tf32 = True  # PyTorch's default
    for wanted in (True, False):
        with tf32(wanted):
            assert allowed() == [wanted, wanted]
            allow_tf32(not wanted)
        assert allowed() == [False, True]


@pytest.mark.parametrize("options", [{"tf32": True}, {"tf32": False}, {}])
def test_training_uses_the_chosen_precision(small_sd: str, options: dict[str, bool]) -> None:
    seen = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            seen.append(allowed())

    allow_tf32(not options.get("tf32"))
    fit(SiDLSG(small_sd, compute=Compute(**options)), 2, 1, [Watch()], accelerator="cpu")
    assert seen == [[options.get("tf32", False)] * 2] * 2


def test_commands_disable_tf32() -> None:
    allow_tf32(True)
    with pytest.raises(SystemExit):
        main(["generate", "--model", "./nowhere", "--prompt", "a cat"])
    assert allowed() == [False, False]


@pytest.mark.gpu
def test_tf32_changes_rounding_on_a_gpu() -> None:
    x = torch.randn(512, 512, device="cuda", dtype=torch.float64)
    image, kernel = x.reshape(1, 64, 64, 64), torch.randn(64, 64, 3, 3, device="cuda").double()

    def errors() -> list[float]:
        products = x.float() @ x.float(), torch.conv2d(image.float(), kernel.float())
        exact = x @ x, torch.conv2d(image, kernel)
        pairs = zip(products, exact, strict=True)
        return [float((a - b).norm() / b.norm()) for a, b in pairs]

    assert max(errors()) < 1e-5
    allow_tf32(True)
    if torch.cuda.get_device_capability() >= (8, 0):
        assert min(errors()) > 1e-5


def test_bfloat16_is_rejected_where_a_card_only_emulates_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation  # as a T4 answers

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    cuda = torch.device("cuda", 0)
    check_bf16(cuda, [])
    check_bf16(torch.device("cpu"), ["--trainer.precision bf16-mixed"])
    for option in ("--trainer.precision bf16-mixed", "--model.memory.frozen_precision bf16"):
        with pytest.raises(UsageError, match=f"{option}: Tesla T4 has no bfloat16. Use "):
            check_bf16(cuda, [option])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    check_bf16(cuda, ["--trainer.precision bf16-mixed"])
