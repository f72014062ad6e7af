"""Signals outside training: the status they end with, and those that stay ignored."""

import signal

import pytest

from sid_lsg.distributed.signals import NAMES, ending_on_signals
from sid_lsg.messages.errors import Interrupted

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", NAMES)
def test_outside_training_a_signal_raises_with_its_status(number: int) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted) as end, ending_on_signals():
        signal.raise_signal(number)
    assert end.value.code == 128 + number
    assert "--ckpt_path last" in str(end.value)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


def test_ignored_signals_stay_ignored() -> None:
    """Ctrl-C does not end a background job of a script or of nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending_on_signals():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
