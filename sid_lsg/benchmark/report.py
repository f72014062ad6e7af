"""Format a benchmark's result as Markdown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sid_lsg.benchmark.settings import setting_name
from sid_lsg.messages.words import table
from sid_lsg.options.renamed import current

Table = tuple[list[str], list[list[str]]]
"""Column heads and rows."""

_GIB = 2**30


def markdown(result: Mapping[str, Any]) -> str:
    """Format the result of `benchmark` as Markdown: a table of all settings, then each in parts."""
    about = result["machine"]
    lines = [
        f"# {result['teacher']} on {about['device']}",
        "",
        f"{', '.join(f'{name} {value}' for name, value in about.items() if name != 'device')}. "
        f"Times are {result['unit']}; medians of {result['iterations']} iterations.",
        "",
    ]
    if settings := result.get("settings"):
        lines += [table(*_overview(settings)), ""]
        for row in settings:
            lines += [f"## {_name(row)}", "", table(*_parts(row)), ""]
            if "operators" in row:
                lines += ["One iteration under torch.profiler, by kind of operator:", ""]
                lines += [table(*_operators(row)), ""]
    if tries := result.get("does_not_fit"):
        lines += ["## Does not fit", "", *(f"- {each}" for each in tries), ""]
    if largest := result.get("largest_micro_batch"):
        lines += ["## Largest micro-batch that fits", ""]
        lines += [f"- {precision}: {size}" for precision, size in largest.items()] + [""]
    if comparison := result.get("comparison"):
        lines += ["## Against the baseline", "", table(*_comparison(comparison)), ""]
        for name in ("ratio", "ratio_without_garbage_collection"):
            ratio = comparison[name]
            low, high = ratio["quartiles"]
            lines.append(
                f"{name.replace('_', ' ').capitalize()}: {ratio['median']:.2f} "
                f"(quartiles of the turns {low:.2f} to {high:.2f})."
            )
        model = current({"model": result["config"]})["model"]
        # The options that a comparison depends on most; a micro-batch of null is the whole batch.
        decisive = {
            "micro_batch_size": model["micro_batch_size"],
            "compute.compile": model["compute"]["compile"],
        }
        lines += ["", *(f"- `--model.{k} {json.dumps(v)}`" for k, v in decisive.items())]
    return "\n".join(lines).rstrip() + "\n"


def _name(row: Mapping[str, Any]) -> str:
    sizes = f"micro-batch {row['micro_batch_size']}, batch {row['batch_size']}"
    return f"{setting_name(row['precision'], row['memory'])}, {sizes}"


def _overview(settings: Sequence[Mapping[str, Any]]) -> Table:
    columns = "precision, memory, micro-batch, images/s, seconds, TFLOP/s, ceiling, share, weights"
    columns += ", gradients, optimizer, EMA, activations, peak GiB"
    rows = []
    for row in settings:
        memory = row["memory_bytes"]
        peak = memory.get("allocator", memory["all"])
        kinds = [memory[name] for name in ("weights", "gradients", "optimizer", "EMA")]
        low, high = row["seconds"]["quartiles"]
        rows.append(
            [
                row["precision"],
                row["memory"],
                str(row["micro_batch_size"]),
                f"{row['images_per_s']:.3g}",
                f"{row['seconds']['median']:.3g} ({low:.3g}..{high:.3g})",
                f"{row['flops_per_s'] / 1e12:.3g}",
                f"{row['ceiling_flops_per_s'] / 1e12:.3g}",
                f"{row['share_of_ceiling']:.1%}",
                *(f"{size / _GIB:.3g}" for size in (*kinds, memory["activations"], peak)),
            ]
        )
    return columns.split(", "), rows


def _parts(row: Mapping[str, Any]) -> Table:
    rows = []
    total = sum(value for parts in row["parts_seconds"].values() for value in parts.values())
    for phase, parts in row["parts_seconds"].items():
        for part, seconds in parts.items():
            flops = row["parts_flops"].get(phase, {}).get(part, 0)
            speed = f"{flops / seconds / 1e12:.3g}" if flops and seconds else ""
            count = f"{flops / 1e9:.4g}" if flops else ""
            rows.append([phase, part, f"{seconds:.3g}", f"{seconds / total:.1%}", count, speed])
    return ["phase", "part", "seconds", "share", "GFLOP", "TFLOP/s"], rows


def _operators(row: Mapping[str, Any]) -> Table:
    rows = []
    whole = sum(own["seconds"] for own in row["operators"].values())
    for kind, own in row["operators"].items():
        speed = own["flops"] / own["seconds"] if own["seconds"] else 0
        rows.append(
            [
                kind,
                str(own["calls"] or ""),
                f"{own['seconds']:.3g}",
                f"{own['seconds'] / whole:.1%}",
                f"{own['flops'] / 1e9:.4g}" if own["flops"] else "",
                f"{speed / 1e12:.3g}" if speed else "",
                f"{speed / row['ceiling_flops_per_s']:.0%}" if speed else "",
            ]
        )
    head = ["operators", "calls", "seconds", "share", "GFLOP", "TFLOP/s", "of the ceiling"]
    return head, rows


def _comparison(comparison: Mapping[str, Any]) -> Table:
    rows = []
    for name, seconds in comparison["iterations"].items():
        low, high = seconds["quartiles"]
        rows.append([name, f"{seconds['median']:.4g}", f"{low:.4g}..{high:.4g}"])
    return ["", "seconds", "quartiles"], rows
