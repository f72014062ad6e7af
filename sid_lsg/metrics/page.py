"""One HTML page of a comparison, which opens without a network."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from sid_lsg.files.replacing import replacing
from sid_lsg.images.pixels import rgb
from sid_lsg.metrics.compared import Result, Table, distinct_names

SHOWN = 24  # prompts with images
_SIDE = 320  # pixels of an image on the page, at most
_LOSSLESS = 128  # up to this side images are PNG, which shows their pixels
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.row { display: flex; gap: .6rem; overflow-x: auto; }
figure { margin: 0; } figcaption { font-size: 13px; color: #666; }
img { width: 256px; image-rendering: auto; } img.small { image-rendering: pixelated; }
h2 { font-size: 16px; font-weight: 600; margin: 1.6rem 0 .4rem; }
h2 small { font-weight: 400; color: #666; }
"""


def write_page(results: Sequence[Result], tables: Sequence[Table], note: str, path: Path) -> None:
    """Write the tables, and the images of some prompts side by side, into one file.

    Args:
        results: The models.
        tables: Their tables.
        note: Text below them.
        path: The page.
    """
    names = list(distinct_names(results))
    title = escape(names[0] if len(names) == 1 else f"Comparison of {len(names)} models")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        *(line for head, rows in tables for line in _table(head, rows)),
        f"<p>{escape(note)}</p>",
        *_gallery(results, names),
        "</body></html>",
    ]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8", errors="surrogateescape")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield '<div class="wide"><table>'
    for tag, cells in [("th", head), *(("td", row) for row in rows)]:
        yield "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _gallery(results: Sequence[Result], names: Sequence[str]) -> Iterator[str]:
    """Show the images of evenly spaced prompts, which have one number in all models."""
    shown = [(one, name) for one, name in zip(results, names, strict=True) if one.files]
    count = min((len(one.files) for one, _ in shown), default=0)
    for place in (i * count // min(SHOWN, count) for i in range(min(SHOWN, count))):
        text = next((one.prompts[place] for one, _ in shown if one.prompts), "")
        figures = [
            f"<figure>{image}<figcaption>{escape(name)}</figcaption></figure>"
            for one, name in shown
            if (image := _image(one.files[place], text))
        ]
        if figures:
            yield f"<h2>{escape(text)} <small>image {place}</small></h2>"
            yield f'<div class="row">{"".join(figures)}</div>'


def _image(path: Path, text: str) -> str:
    """Return an image as an element with its bytes; "" if the file is gone."""
    if not path.is_file():
        return ""
    with Image.open(path) as opened:
        image = rgb(opened)
    small = max(image.size) <= _LOSSLESS
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    image.save(content, "PNG" if small else "JPEG", **({} if small else {"quality": 90}))
    data = base64.b64encode(content.getvalue()).decode()
    kind, style = ("png", ' class="small"') if small else ("jpeg", "")
    return f'<img{style} alt="{escape(text or path.name)}" src="data:image/{kind};base64,{data}">'
