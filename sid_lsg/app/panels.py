"""Check the inputs of the `app` page, sample its images and render its panels."""

import base64
import html
import io
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sid_lsg.generation.image_files import ImageRequest, png_text
from sid_lsg.generation.models import ImageModel
from sid_lsg.images.pixels import to_pil
from sid_lsg.messages.errors import UsageError
from sid_lsg.messages.words import steps

MOST_CHARACTERS, MOST_SEED, MOST_IMAGES = 2000, 2**32 - 1, 16
MOST_STEPS, MOST_TEACHER_STEPS, MOST_GUIDANCE = 8, 100, 15
_SHOWN = 192  # minimum width on the screen, in pixels; smaller images are enlarged


class Shot(NamedTuple):
    """An image as the PNG file that is shown and downloaded, and the seconds of sampling it."""

    seed: int
    width: int
    png: bytes
    seconds: float


def take(model: ImageModel, prompt: str, seed: int) -> Shot:
    """Sample one image as `generate` does, in a batch of its own, so it depends on no other.

    Raises:
        UsageError: If the image is not finite.
    """
    start = time.perf_counter()
    images = model.sample([prompt], [seed]).cpu()
    seconds = time.perf_counter() - start
    if not images.isfinite().all():
        raise UsageError(
            f"The image of seed {seed} is not finite in {model.about['dtype']}. Start the app with "
            "--dtype float32 or bfloat16."
        )
    (image,) = to_pil(images)
    file = io.BytesIO()
    text = png_text(ImageRequest("", prompt, seed), model.about["model"])
    image.save(file, format="PNG", pnginfo=text)
    return Shot(seed, image.width, file.getvalue(), seconds)


def check_prompt(prompt: object) -> str:
    """Return the prompt as `generate` takes it.

    Raises:
        UsageError: If it is empty, too long, or not text.
    """
    text = prompt.strip() if isinstance(prompt, str) else ""
    if not text:
        raise UsageError("The prompt is empty. Describe the image.")
    if len(text) > MOST_CHARACTERS:
        raise UsageError(f"The prompt has {len(text)} characters. Give at most {MOST_CHARACTERS}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError("The prompt holds a broken character. Type it again.") from None
    return text


def check_number(name: str, value: object, least: int, most: int, whole: bool = True) -> float:
    """Return a number if it is in range; as an int if it must be whole.

    Raises:
        UsageError: If it is not such a number.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is false for NaN and comes before float(), which huge integers overflow.
    if not (number and least <= value <= most) or (whole and not float(value).is_integer()):  # type: ignore[operator, arg-type]
        kind = "whole number" if whole else "number"
        raise UsageError(f"{name}: give a {kind} from {least} to {most}, got {str(value)[:40]}.")
    return int(value) if whole else float(value)  # type: ignore[call-overload, arg-type]


def show_cuts(models: Mapping[str, ImageModel], prompt: str) -> str:
    """Return a notice of the part of a prompt that models' text encoders cut off; "" if none."""
    cuts: dict[str, list[str]] = {}
    for name, model in models.items():
        cuts.setdefault(model.cut_off(prompt), []).append(f"the {name}")
    return "".join(
        f'<p class="sid-notice">The prompt is too long. Not seen by {" and ".join(names)}: '
        f"<q>{_text(cut)}</q></p>"
        for cut, names in cuts.items()
        if cut
    )


def show_shots(
    name: str,
    model: ImageModel,
    shots: Sequence[Shot],
    total: int,
    student_seconds: float | None = None,
) -> str:
    """Render a model's images with their times as HTML.

    Args:
        name: Student or teacher.
        model: The model.
        shots: The finished images.
        total: The number of requested images.
        student_seconds: The student's seconds per image, to compare with.
    """
    guidance = model.about["guidance"]
    how = steps(model.about["num_steps"])
    how += "" if guidance is None else f", guidance {guidance:g}"
    seconds = sum(shot.seconds for shot in shots)
    each = seconds / len(shots) if shots else 0.0
    lines = f"<b>{show_time(each)}</b> per image, {show_time(seconds)} in all"
    if student_seconds:
        lines += f": {each / student_seconds:.3g} times the student's"
    if len(shots) < total:
        lines = f"{len(shots)} of {total} images{', ' + lines if shots else ''}"
    plural = "s" * (model.evaluations > 1)
    return (
        f'<section class="sid-panel"><h3>{name.capitalize()}</h3>'
        f"<p>{how} ({model.evaluations} network evaluation{plural})</p>"
        f'<p class="sid-times">{lines}</p>'
        f'<div class="sid-shots">{"".join(_figure(name, shot) for shot in shots)}</div></section>'
    )


def show_time(seconds: float) -> str:
    """Format a duration in milliseconds or seconds."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def _figure(name: str, shot: Shot) -> str:
    """Render an image pixel by pixel, enlarged by an integer factor if it is small."""
    url = "data:image/png;base64," + base64.b64encode(shot.png).decode()
    factor = -(-_SHOWN // shot.width)
    pixels = ' class="sid-pixels"' if factor > 1 else ""
    return (
        f'<figure><img src="{url}" width="{factor * shot.width}"{pixels} '
        f'alt="{name}, seed {shot.seed}"><figcaption>seed {shot.seed} '
        f'<span>{show_time(shot.seconds)}</span> <a href="{url}" '
        f'download="{name}-{shot.seed}.png">PNG</a></figcaption></figure>'
    )


def _text(text: str) -> str:
    """Escape text for HTML and for Gradio's templates, which would read ${...} and {{...}}."""
    return html.escape(text).translate({ord(c): f"&#{ord(c)};" for c in "{}$`\\"})
