"""The report of an evaluation: numbers as JSON, a Markdown table, sample images and plots."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sid_lsg import __version__
from sid_lsg.files.replacing import replacing
from sid_lsg.images.folder import MANIFEST, read_image
from sid_lsg.images.pixels import comparison, from_uint8, save_png
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.alignment import ImageSet, draw, neighbour_distances, report
from sid_lsg.metrics.compared import (
    COMPARED,
    EACH,
    IMAGES,
    REPORT,
    Result,
    distinct_names,
    load,
    markdown,
    note,
    pair_rows,
    read_result,
    score_rows,
    write_csv,
)
from sid_lsg.metrics.evaluator import K_NEAREST, Evaluator, Scores
from sid_lsg.metrics.page import write_page
from sid_lsg.metrics.statistics import Statistics

TABLE, PAGE = "report.csv", "report.html"
_FILES = (REPORT, "report.md", TABLE, PAGE, EACH, "samples.png", "alignment.png")
_UNREADABLE = (OSError, ValueError, TypeError, KeyError)
PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics", "numpy", "pillow")
NUM_SAMPLES = 8
# Fields that must be equal for two reports to share a table.
_SHARED = ("num_images", "prompts_sha256", "protocol", "reference", "clip", "published")


def write_report(
    root: Path,
    evaluator: Evaluator,
    scores: Scores,
    paths: Sequence[Path],
    captions: Sequence[str] | None,
    about: dict[str, Any],
    others: Sequence[Result],
) -> None:
    """Write the report as report.json, .md, .csv and .html, the scores of each image, and figures.

    Args:
        root: Output folder.
        evaluator: The evaluator that computed the scores.
        scores: Its results.
        paths: The image files.
        captions: Their captions, if known.
        about: Description of the images: `name`, `images` and how they were sampled.
        others: Further reports for the table; `check_comparable` must have accepted them.
    """
    reference = evaluator.reference
    count = len(paths)
    content: dict[str, Any] = {
        "name": about["name"],
        "scores": {evaluator.key(name, count): value for name, value in scores.values.items()},
        **about,
        **scored_by(evaluator),
        "k_nearest": K_NEAREST,
        "versions": versions(),
    }
    if reference is not None:
        generated, real = _image_set(scores.statistics), _image_set(reference)
        distances = neighbour_distances(generated.features, real.features)
        content["alignment"] = report(generated, real, distances)
        save_png(draw(generated, real, distances), root / "alignment.png")
    each = {evaluator.key(name, count): values for name, values in scores.each.items()}
    own = Result(content, paths, captions or [], each)
    save_png(_samples(own, others), root / "samples.png")
    scored = _write_tables(root, [*others, own])
    own.save(root)
    with replacing(root / "report.md") as temporary:
        temporary.write_text(_markdown(content, scored), encoding="utf-8", errors="surrogateescape")
    print(f"\n{scored}\n\nReport and images: {root}; page: {root / PAGE}")


def write_comparison(root: Path, results: Sequence[Result]) -> None:
    """Write the tables and the page of reports alone.

    Args:
        root: Output folder.
        results: The reports; `check_comparable` must have accepted them.
    """
    scored = _write_tables(root, results)
    content = {COMPARED: [one.content for one in results], "scores": {}}
    with replacing(root / REPORT) as temporary:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8", errors="surrogateescape")
    with replacing(root / "report.md") as temporary:
        names = ", ".join(one.name for one in results)
        temporary.write_text(f"# {names}\n\n{scored}\n", encoding="utf-8", errors="surrogateescape")
    print(f"\n{scored}\n\nReport: {root}; page: {root / PAGE}")


def _write_tables(root: Path, results: Sequence[Result]) -> str:
    """Write the table as .csv and the page; return the tables as Markdown."""
    write_csv(results, root / TABLE)
    tables, text = [score_rows(results), pair_rows(results)], note(results)
    write_page(results, tables, text, root / PAGE)
    return markdown(tables, text)


def check_free_of_others(root: Path) -> None:
    """Reject a folder in which a report would overwrite files that no evaluation wrote.

    Raises:
        UsageError: If there is such a file.
    """
    there = [name for name in _FILES if os.path.lexists(root / name)]
    interrupted = (root / IMAGES / MANIFEST).is_file()  # images written, scores not yet
    if there and not (interrupted or _is_report(root / REPORT)):
        raise UsageError(
            f"--output: {str(root)!r} contains a {there[0]!r} that no evaluation wrote. Choose "
            "another folder."
        )


def read_report(folder: str) -> Result:
    """Read an earlier report.

    Raises:
        UsageError: If the folder contains no report.
    """
    path = Path(folder).expanduser()
    path = path / REPORT if path.is_dir() else path
    try:
        return read_result(path)
    except _UNREADABLE as error:
        raise UsageError(
            f"--compare: {folder!r} is not a report folder ({error}). Give the --output folder "
            "of an earlier evaluation."
        ) from error


def _is_report(path: Path) -> bool:
    try:
        return bool(load(path))
    except _UNREADABLE:
        return False


def scored_by(evaluator: Evaluator) -> dict[str, Any]:
    """Describe how the scores were computed: protocol, reference and networks."""
    return {
        "protocol": evaluator.protocol.identity,
        "reference": _described(evaluator.reference),
        "clip": _clip(evaluator),
        "published": {score.name: score.identity for score in evaluator.scores},
    }


def check_comparable(own: dict[str, Any], other: dict[str, Any]) -> None:
    """Reject a report with scores that were computed differently.

    Raises:
        UsageError: If a setting differs; the message names the first.
    """
    for name in _SHARED:
        ours, theirs = own.get(name), other.get(name)
        if name == "published" and not (ours and theirs):
            continue  # a score that one report lacks is left open in the table
        if name in ("reference", "published") and ours and theirs:  # compare what both have
            common = ours.keys() & theirs.keys()
            ours, theirs = ({key: fields[key] for key in common} for fields in (ours, theirs))
        if json.dumps(ours, sort_keys=True) != json.dumps(theirs, sort_keys=True):
            raise UsageError(
                f"--compare: the report of {other.get('name')!r} differs in its {name} "
                f"({other.get(name)!r}, here {own.get(name)!r}), so its scores are not comparable. "
                "Evaluate both with the same settings."
            )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the scores."""
    found = {name: version(name) for name in PACKAGES}
    return {"sid_lsg": __version__, "python": platform.python_version()} | found


def _image_set(statistics: Statistics) -> ImageSet:
    return ImageSet(statistics.features.cpu(), statistics.pixels)


def _described(reference: Statistics | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    about = {name: value for name, value in reference.about.items() if name != "protocol"}
    return {"count": reference.count, "features": len(reference.features), **about}


def _clip(evaluator: Evaluator) -> dict[str, Any] | None:
    if evaluator.clip is None:
        return None
    chain = evaluator.clip_chain.chain
    return {"prefix": evaluator.clip_prefix, "chain": chain, **evaluator.clip.identity}


def _samples(own: Result, others: Sequence[Result]) -> Any:
    """Show a few images, below the same images of the compared reports if their shapes match."""
    number = min(NUM_SAMPLES, len(own.files))
    chosen = [i * len(own.files) // number for i in range(number)]
    shown = _read([own.files[i] for i in chosen])
    rows: dict[str, Tensor] = {}
    for name, result in zip(distinct_names([*others, own]), [*others, own], strict=True):
        files = [_file(result, own.files[i].name, i) for i in chosen]
        if all(file.is_file() for file in files):
            images = shown if result is own else _read(files)
            rows |= {name: images} if images.shape == shown.shape else {}
    return comparison(rows, [own.prompts[i] if own.prompts else own.files[i].name for i in chosen])


def _file(other: Result, name: str, place: int) -> Path:
    """Return an image of a report; those of earlier versions name no files."""
    return other.files[place] if other.files else Path(other.content["images"], name)


def _read(paths: Sequence[Path]) -> Tensor:
    """Read images and crop them to a common size: [B, 3, H, W] in [-1, 1]."""
    images = [read_image(path) for path in paths]
    height, width = (min(sizes) for sizes in zip(*(i.shape[1:] for i in images), strict=True))
    cropped = [from_uint8(image[:, :height, :width]) for image in images]
    return torch.stack(cropped)


def _markdown(content: dict[str, Any], scored: str) -> str:
    """Format the report as Markdown."""
    protocol = content["protocol"]
    reference = content["reference"]
    facts = {
        "images": f"{content['num_images']} in {content['images']}",
        "sampling": ", ".join(
            f"{name} {content[name]}"
            for name in ("sampler", "num_steps", "guidance", "dtype", "seeds")
            if content.get(name) is not None
        ),
        "protocol": f"{protocol['protocol']}: {protocol['chain']}",
        "reference": reference and f"{reference['count']} images, {reference.get('source', '')}",
        "CLIP": content["clip"] and f"prefix {content['clip']['prefix']!r}",
        "prompts": f"SHA-256 {content['prompts_sha256']}",
        "versions": ", ".join(f"{name} {value}" for name, value in content["versions"].items()),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value]
    figures = "![samples](samples.png)\n"
    if reference:
        figures += "\n![alignment with the reference](alignment.png)\n"
    return f"# {content['name']}\n\n{scored}\n\n" + "\n".join(lines) + f"\n\n{figures}"
