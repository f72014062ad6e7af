"""Format a study's scores as Markdown tables."""

from collections.abc import Sequence

from sid_lsg.messages.words import table as lay_out
from sid_lsg.options.choices import PUBLISHED_SCORES
from sid_lsg.study.options import ErrorBars
from sid_lsg.study.results import Row, suffix
from sid_lsg.study.statistics import ERROR_BARS, Group, Mean, by_prompts, groups, is_teacher

_SHOWN = {"fid": "FID", "clip_score": "CLIP", "precision": "precision", "recall": "recall"}
_SHOWN |= {score: score for score in PUBLISHED_SCORES}


def markdown(rows: Sequence[Row], kind: ErrorBars) -> str:
    """Format all finished evaluations: a table per set of scored prompts."""
    found = groups(rows, kind)
    if not found:
        return "No run has finished yet.\n"
    notes = [f"Scores are of `{suffix(rows)}` (protocol and number of images)."]
    if any(group.seeds > 1 for group in found):
        notes.append(f"Means over the seeds, ± their {ERROR_BARS[kind]}.")
    parts = [" ".join(notes)]
    for prompts, same in by_prompts(found).items():
        parts += [f"Scored on `{prompts}`:", table(same)]
    return "\n\n".join(parts) + "\n"


def table(found: Sequence[Group]) -> str:
    """Format groups as a table with a row per group, the teacher first."""
    shown = [name for name in _SHOWN if any(name in group.scores for group in found)]
    head = ["series", "point", "steps", "images seen", "seeds", *(_SHOWN[name] for name in shown)]
    body = [
        [
            group.series,
            f"guidance {group.point}" if is_teacher(group) else group.point,
            str(group.num_steps),
            "-" if is_teacher(group) else f"{group.images_seen:,}",
            "-" if is_teacher(group) else str(group.seeds),
            *(number(group.scores.get(name)) for name in shown),
        ]
        for group in sorted(found, key=lambda group: not is_teacher(group))
    ]
    return lay_out(head, body)


def number(mean: Mean | None) -> str:
    """Format a mean with its error bar."""
    if mean is None:
        return "-"
    return f"{mean.value:.3f}" + ("" if mean.error is None else f" ± {mean.error:.3f}")
