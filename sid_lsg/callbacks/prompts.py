"""Select prompts to show."""

from collections.abc import Sequence


def spread(prompts: Sequence[str], count: int) -> list[str]:
    """Choose `count` prompts at even distances; repeat them where there are fewer."""
    if len(prompts) <= count:
        return [prompts[i % len(prompts)] for i in range(count)]
    return [prompts[i * len(prompts) // count] for i in range(count)]
