"""Counts in words, and Markdown tables."""

from sid_lsg.messages.words import steps, table


def test_one_step_is_singular() -> None:
    assert [steps(1), steps(2), steps(25)] == ["1 step", "2 steps", "25 steps"]


def test_a_table_is_markdown() -> None:
    text = table(["", "FID"], [["teacher", "0.4"], ["ours, 1 step", "-"]])
    assert text.splitlines() == [
        "|  | FID |",
        "| --- | --- |",
        "| teacher | 0.4 |",
        "| ours, 1 step | - |",
    ]


def test_a_cell_is_escaped() -> None:
    assert table(["prompt"], [["a | b\nc"]]).splitlines()[-1] == "| a \\| b c |"
