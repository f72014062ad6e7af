"""The message for a value that an option cannot take."""

import pytest

from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError


def test_refuse_names_option_wish_and_value() -> None:
    with pytest.raises(UsageError) as refusal:
        refuse("model.tmin", "x", "a number")
    assert str(refusal.value) == "--model.tmin must be a number, got 'x'."
