"""Snapshots of power-function averages, and EMAs of any width from them (`method.post_hoc_ema`).

A run directory holds one file per snapshot, `ema_snapshots/images-000012800.safetensors`, with the
trained weights of each average under `WIDTH.NAME` in float32.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from sid_lsg.files.replacing import replacing
from sid_lsg.files.streaming import Pending, write_safetensors
from sid_lsg.messages.errors import UsageError
from sid_lsg.method.post_hoc_ema import WIDEST, WIDTHS, Profile, coefficients, error

FOLDER = "ema_snapshots"
_NARROWEST = 0.03
_LARGEST_ERROR = 0.1  # L2, relative


def save_snapshot(run: Path, images: int, averages: Mapping[float, nn.Module]) -> None:
    """Write the averages of some number of images seen.

    Args:
        run: The run directory.
        images: Images seen.
        averages: A network for each relative width.

    Raises:
        OSError: If writing fails.
    """
    pending = [
        Pending(f"{width}.{name}", torch.float32, tuple(weight.shape), partial(_float, weight))
        for width, network in averages.items()
        for name, weight in network.named_parameters()
    ]
    with replacing(run / FOLDER / f"images-{images:09d}.safetensors") as file:
        write_safetensors(file, pending, {"images": str(images)})


def post_hoc_ema(run: Path, images: int, width: float) -> dict[str, Tensor]:
    """Return the trained weights' average of a relative width at some number of images seen.

    Reads each snapshot once, and holds two copies of the weights.

    Args:
        run: The run directory.
        images: Images seen; the average is that of the newest snapshot up to here.
        width: The relative width.

    Raises:
        UsageError: If the width is out of range, or there are no snapshots or too few of them.
    """
    if not _NARROWEST <= width <= WIDEST:
        raise UsageError(f"--ema_width must be {_NARROWEST} to {WIDEST}, not {width}.")
    found = {_images(path): path for path in (run / FOLDER).glob("images-*.safetensors")}
    files = dict(sorted((seen, path) for seen, path in found.items() if seen <= images))
    if not files:
        raise UsageError(
            f"--ema_width: {str(run)!r} has no snapshots of its first {images:,} images. Train "
            "with --model.ema.snapshot_images, or leave the option out."
        )
    profiles = [Profile(seen, one) for seen in files for one in WIDTHS]
    wanted = Profile(max(files), width)
    factors = coefficients(profiles, wanted)
    if (wrong := error(profiles, factors, wanted)) > _LARGEST_ERROR:
        raise UsageError(
            f"--ema_width {width}: the average of {len(files)} snapshots is {wrong:.0%} off this "
            "one. Save more of them with --model.ema.snapshot_images, or give a width nearer to "
            f"{WIDTHS[0]} or {WIDTHS[1]}."
        )
    factor = dict(zip(profiles, factors.tolist(), strict=True))
    average: dict[str, Tensor] = {}
    for seen, path in files.items():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                kept = next(one for one in WIDTHS if key.startswith(f"{one}."))
                name = key.removeprefix(f"{kept}.")
                part = file.get_tensor(key).mul_(factor[Profile(seen, kept)])
                average[name] = average[name].add_(part) if name in average else part
    return average


def _images(path: Path) -> int:
    return int(re.sub(r"\D", "", path.stem))


def _float(weight: Tensor) -> Tensor:
    return weight.detach().float()
