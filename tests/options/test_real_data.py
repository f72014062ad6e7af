"""The adversarial term is refused where it would have no effect."""

import pytest

from sid_lsg.messages.errors import UsageError
from sid_lsg.options.real_data import RealData
from sid_lsg.training.module import SiDLSG


def test_the_matching_loss_has_no_adversarial_term(small_sd: str) -> None:
    with pytest.raises(UsageError, match="^--model.objective dmd: the adversarial term"):
        SiDLSG(small_sd, real_data=RealData(), objective="dmd")
    SiDLSG(small_sd, objective="dmd")
