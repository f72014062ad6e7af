"""`prompts`: collect captions to train on."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from sid_lsg.files.replacing import check_writable, replacing, writing
from sid_lsg.messages.checks import refuse
from sid_lsg.messages.errors import UsageError
from sid_lsg.options.choices import PromptLanguage

COLUMN = "prompt"  # of the .parquet file
_GROUP = 50_000  # prompts that are written at a time


def prompts(
    source: str | list[str],
    output: str = "prompts.parquet",
    column: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    min_words: int = 3,
    max_words: int | None = None,
    language: PromptLanguage = "english",
    exclude: str | list[str] | None = None,
    exclude_column: str | None = None,
    exclude_words: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Collect the captions of a data set as prompts, and filter them.

    Writes the prompts, and beside them a .json file with the options, the number of captions read
    and kept, and of those left out for each reason. Captions are read one at a time: memory grows
    by 8 bytes for each caption kept and for each run of 8 words of --exclude.

    Args:
        source: A data set on the Hub (owner/name), a folder in its layouts, or files (.txt with one
            caption per line, .jsonl, .csv, .tsv, .parquet), which may be globs.
        output: The file of prompts: .parquet with the column `prompt`, or .txt.
        column: Column of the captions; a value may be a list of captions.
        subset: Configuration of the data set.
        split: Split of the data set; by default train.
        revision: Branch, tag or commit of the data set.
        limit: Stop after this many prompts.
        min_words: Leave out captions with fewer words.
        max_words: Leave out captions with more words; by default there is no limit.
        language: `english`: leave out captions of which less than 90% of the letters are Latin, and
            those with more frequent words of other languages than of English. `latin`: only the
            first. `any`: keep all.
        exclude: Files of texts on which models are scored, such as COCO's captions_val2014.json, a
            table or a .txt file. Captions with the same words, or with 8 words in a row of one of
            them, are left out.
        exclude_column: Column of --exclude; by default `caption`, `text` or `prompt`.
        exclude_words: A .txt file of words and phrases, one per line. Captions with one of them, as
            whole words without case, are left out.
        overwrite: Replace the output.
        progress: Show a progress bar.

    Raises:
        UsageError: If a file, data set or column cannot be read, or no caption is left.
    """
    from tqdm import tqdm

    from sid_lsg.data.corpus import find_files
    from sid_lsg.data.prompt_filters import Filters, Overlap, words
    from sid_lsg.data.prompt_sources import captions, excluded_texts, open_source, read_list

    path = _checked(output, overwrite)
    for option, value in {"limit": limit, "min_words": min_words, "max_words": max_words}.items():
        if value is not None and value < 1:
            refuse(option, value, "at least 1")
    if max_words is not None and max_words < min_words:
        refuse("max_words", max_words, f"at least --min_words ({min_words})")
    if exclude_column and not exclude:
        raise UsageError("--exclude_column needs --exclude, which is not given. Leave it out.")
    opened = open_source(source, subset, split, revision)
    listed = read_list(Path(exclude_words).expanduser(), "exclude_words") if exclude_words else []
    files = find_files(exclude, "--exclude") if exclude else []
    filters = Filters(
        min_words,
        max_words,
        language,
        frozenset(" ".join(found) for line in listed if (found := words(line))),
        Overlap(excluded_texts(files, exclude_column)),
    )
    dropped: Counter[str] = Counter()
    kept, digest = 0, sha256()
    read = tqdm(captions(opened, column), "captions", disable=not progress, unit="", leave=False)
    with writing(path.parent, "output"), _writer(path) as writer:
        for text in read:
            if reason := filters.reason(text):
                dropped[reason] += 1
                continue
            prompt = " ".join(text.split())
            writer.write(prompt)
            digest.update(prompt.encode() + b"\n")
            kept += 1
            if kept == limit:
                break
        if not kept:
            raise UsageError(f"--source: no caption is left. {_counts(0, dropped)}")
    about = {
        "source": source, "column": column, "subset": subset, "split": split, "revision": revision,
        "limit": limit, "min_words": min_words, "max_words": max_words, "language": language,
        "exclude": exclude, "exclude_words": exclude_words,
        "captions": kept + dropped.total(), "prompts": kept,
        "left_out": dict(dropped.most_common()), "prompts_sha256": digest.hexdigest(),
    }  # fmt: skip
    with writing(path.parent, "output"), replacing(_beside(path)) as temporary:
        text = json.dumps(about, indent=2, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
    print(f"{_counts(kept, dropped)}\nPrompts: {path}")


class _Writer(Protocol):
    """Writes prompts one after another."""

    def write(self, prompt: str) -> object:
        """Add a prompt."""


class _Parquet:
    """Writes prompts to a .parquet file in groups."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        self._table = pyarrow.table
        self._schema = pyarrow.schema([(COLUMN, pyarrow.string())])
        self._file = parquet.ParquetWriter(path, self._schema)
        self._waiting: list[str] = []

    def write(self, prompt: str) -> None:
        self._waiting.append(prompt)
        if len(self._waiting) == _GROUP:
            self._flush()

    def close(self) -> None:
        if self._waiting:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        self._file.write_table(self._table({COLUMN: self._waiting}, self._schema))
        self._waiting.clear()


class _Lines:
    """Writes prompts to a .txt file, one per line."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, prompt: str) -> None:
        self._file.write(f"{prompt}\n")


@contextmanager
def _writer(path: Path) -> Iterator[_Writer]:
    """Write a file that replaces an earlier one at the end, unless there is an error."""
    with replacing(path) as temporary:
        if path.suffix == ".txt":
            with temporary.open("w", encoding="utf-8") as file:
                yield _Lines(file)
            return
        table = _Parquet(temporary)
        try:
            yield table
        finally:
            table.close()


def _checked(output: str, overwrite: bool) -> Path:
    """Return the path of the output, if it can be written."""
    path = Path(output).expanduser()
    if path.suffix not in (".parquet", ".txt"):
        refuse("output", output, "a .parquet or .txt file")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UsageError(
                "--output: writing .parquet needs pyarrow: pip install 'sid-lsg[parquet]'. Or give "
                "a .txt file."
            ) from None
    for file in (path, _beside(path)):
        if file.exists() and not overwrite:
            raise UsageError(
                f"--output: {str(file)!r} exists. Choose another file, or give --overwrite."
            )
    check_writable(path.parent, "output")
    return path


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _counts(kept: int, dropped: Counter[str]) -> str:
    """Say how many captions were kept and left out."""
    reasons: Iterable[str] = (f"{count:,} {reason}" for reason, count in dropped.most_common())
    left_out = ", ".join(reasons) or "none"
    return f"Kept {kept:,} of {kept + dropped.total():,} captions; left out: {left_out}."
