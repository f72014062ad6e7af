"""Lay images out as the official scorers of benchmarks read them."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from sid_lsg.data.text_tables import JsonlTable, stripped_lines
from sid_lsg.files.replacing import link, replacing
from sid_lsg.generation.image_files import ImageRequest
from sid_lsg.images.pixels import save_png
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import BenchmarkName

_LONGEST = 255  # bytes of a file name


class Item(NamedTuple):
    """A prompt of a benchmark.

    Attributes:
        prompt: The text.
        place: Where its images go, in the layout's folder.
        number: Its place in its file.
        about: The fields of its line.
    """

    prompt: str
    place: str
    number: int
    about: dict[str, object] = {}  # noqa: RUF012 (a tuple's field, which is not changed)


@dataclass(frozen=True)
class Layout:
    """The files that a benchmark's scorer reads.

    Attributes:
        per_prompt: Images of each prompt.
        count: Prompts of the published benchmark, in each file.
        wanted: What its files of prompts are.
        read: Reads one file of prompts.
        write: Writes the images of one prompt into the layout's folder.
        scorer: The command that scores {folder}, whose images have {side} pixels.
    """

    per_prompt: int
    count: int
    wanted: str
    read: Callable[[Path], list[Item]]
    write: Callable[[Item, Sequence[Path], Path], None]
    scorer: str


def read_prompts(benchmark: BenchmarkName, files: Sequence[Path]) -> list[Item]:
    """Read a benchmark's own files of prompts.

    Raises:
        UsageError: If they are not those of the benchmark.
    """
    layout = LAYOUTS[benchmark]
    items: list[Item] = []
    for path in files:
        try:
            found = layout.read(path)
            if not found:
                raise UsageError(f"{path} holds no prompt.")
        except UsageError as error:
            raise UsageError(
                f"--prompts: {error} --export {benchmark} needs {layout.wanted}."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--prompts: cannot read {path} ({error}).") from None
        items += found
    places = Counter((item.place, item.number) for item in items)
    if twice := next((place for place, count in places.items() if count > 1), None):
        raise UsageError(
            f"--prompts: two prompts of --export {benchmark} would be {twice[0]!r}. It needs "
            f"{layout.wanted}."
        )
    expected = layout.count * (len(files) if benchmark in _BY_FILE else 1)
    if len(items) != expected:
        rank_zero_warn(
            f"--prompts holds {len(items):,} prompts, and the published benchmark {benchmark} "
            f"{expected:,}: its scores are not comparable with published ones."
        )
    return items


def requests(benchmark: BenchmarkName, items: Sequence[Item]) -> list[ImageRequest]:
    """List the images to sample: those of a prompt follow each other, and image i has seed i."""
    repeated = [item.prompt for item in items for _ in range(LAYOUTS[benchmark].per_prompt)]
    return [ImageRequest(f"{i:07d}.png", text, i) for i, text in enumerate(repeated)]


def lay_out(
    benchmark: BenchmarkName, items: Sequence[Item], images: Sequence[Path], folder: Path
) -> str:
    """Write the layout of a benchmark; it replaces an earlier one at the end.

    Args:
        benchmark: The benchmark.
        items: Its prompts.
        images: The PNG files of `requests`, in order.
        folder: The folder to write.

    Returns:
        The command that scores it.

    Raises:
        OSError: If a file cannot be written.
    """
    layout = LAYOUTS[benchmark]
    with replacing(folder) as temporary:
        temporary.mkdir()
        for position, item in enumerate(items):
            start = position * layout.per_prompt
            layout.write(item, images[start : start + layout.per_prompt], temporary)
    with Image.open(images[0]) as image:
        return layout.scorer.format(folder=folder, side=image.width)


def _read_geneval(path: Path) -> list[Item]:
    rows = [row for _, row in JsonlTable(path).rows()] if path.suffix == ".jsonl" else []
    for number, row in enumerate(rows, 1):
        if not (isinstance(row.get("prompt"), str) and isinstance(row.get("tag"), str)):
            raise UsageError(f"{path}, prompt {number}: it has no 'prompt' and 'tag'.")
    return [Item(row["prompt"], f"{i:05d}", i, row) for i, row in enumerate(rows)]


def _write_geneval(item: Item, images: Sequence[Path], root: Path) -> None:
    samples = root / item.place / "samples"
    samples.mkdir(parents=True)
    (samples.parent / "metadata.jsonl").write_text(json.dumps(item.about), encoding="utf-8")
    for number, image in enumerate(images):
        link(image, samples / f"{number:05d}.png")


def _read_dpg(path: Path) -> list[Item]:
    lines = _texts(path)
    if len(lines) > 1:
        raise UsageError(f"{path} holds {len(lines)} lines.")
    if "." in path.stem:
        raise UsageError(f"{path} has a dot in its name, where the scorer would cut it.")
    return [Item(line, path.stem, 0) for line in lines]


def _write_dpg(item: Item, images: Sequence[Path], root: Path) -> None:
    """Write four images as one: the first two above the others."""
    tiles = [Image.open(image) for image in images]
    width, height = tiles[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for place, tile in enumerate(tiles):
        whole.paste(tile, (place % 2 * width, place // 2 * height))
    save_png(whole, root / f"{item.place}.png")


def _read_hpsv2(path: Path) -> list[Item]:
    try:
        texts = json.loads(path.read_text("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON ({error}).") from None
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise UsageError(f"{path} is not a list of texts.")
    return [Item(text, path.stem, number) for number, text in enumerate(texts)]


def _write_hpsv2(item: Item, images: Sequence[Path], root: Path) -> None:
    """Write a JPEG file with Pillow's defaults, as the benchmark's instructions do."""
    (root / item.place).mkdir(exist_ok=True)
    with Image.open(images[0]) as image:
        image.save(root / item.place / f"{item.number:05d}.jpg")


def _read_t2i_compbench(path: Path) -> list[Item]:
    # After a tab, files of seen and unseen prompts hold further fields.
    texts = [line.split("\t")[0].strip() for line in _texts(path)]
    for number, text in enumerate(texts, 1):
        if "_" in text or "/" in text or len(f"{text}_000000.png".encode()) > _LONGEST:
            raise UsageError(
                f"{path}, prompt {number}: {text!r:.60} cannot be part of a file's name, from "
                "which the scorer reads it (it has _ or /, or is too long)."
            )
    return [Item(text, path.stem, number) for number, text in enumerate(texts)]


def _write_t2i_compbench(item: Item, images: Sequence[Path], root: Path) -> None:
    samples = root / item.place / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, item.number * len(images)):
        link(image, samples / f"{item.prompt}_{number:06d}.png")


def _texts(path: Path) -> list[str]:
    """Return the lines of a .txt file that are not blank."""
    if path.suffix != ".txt":
        return []
    return [text for text in stripped_lines(path) if text]


_BY_FILE: tuple[BenchmarkName, ...] = ("hpsv2", "t2i-compbench")  # each file is a category

LAYOUTS: dict[BenchmarkName, Layout] = {
    "geneval": Layout(
        4, 553, "GenEval's evaluation_metadata.jsonl", _read_geneval, _write_geneval,
        "python evaluation/evaluate_images.py {folder} --outfile results.jsonl "
        "--model-path DETECTOR && python evaluation/summary_scores.py results.jsonl",
    ),
    "dpg": Layout(
        4, 1065, "DPG-Bench's files of one prompt each, 'dpg_bench/prompts/*.txt'",
        _read_dpg, _write_dpg, "PIC_NUM=4 bash dpg_bench/dist_eval.sh {folder} {side}",
    ),
    "hpsv2": Layout(
        1, 800, "HPSv2's lists, such as anime.json", _read_hpsv2, _write_hpsv2,
        "python -c \"import hpsv2; hpsv2.evaluate('{folder}')\"",
    ),
    "t2i-compbench": Layout(
        10, 300, "T2I-CompBench's lists of one prompt per line, such as color_val.txt",
        _read_t2i_compbench, _write_t2i_compbench,
        "python BLIP_vqa.py --out_dir {folder}/CATEGORY/",
    ),
}  # fmt: skip
