"""Real images with captions."""

from pathlib import Path

from PIL import Image


def photographs(folder: Path) -> str:
    """Write five noise images with captions; return their folder."""
    (folder / "photographs").mkdir()
    for n in range(5):
        Image.effect_noise((64, 64), 50 + 40 * n).save(folder / f"photographs/{n}.png")
        (folder / f"photographs/{n}.txt").write_text(f"noise {n}")
    return str(folder / "photographs")
