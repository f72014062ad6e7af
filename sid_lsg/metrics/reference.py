"""Statistics of reference images, computed once and cached."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sid_lsg.distributed.processes import check_enough, gather, process, share_of
from sid_lsg.files.replacing import cache_folder, text_hash
from sid_lsg.files.sources import resolve
from sid_lsg.images.folder import ImageReader, list_images
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.loaded import TEACHER, Loaded
from sid_lsg.metrics.protocol import EvaluationProtocol
from sid_lsg.metrics.statistics import Collector, Statistics
from sid_lsg.networks.precision import tf32


def load_reference(
    source: str,
    protocol: EvaluationProtocol,
    option: str,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Statistics:
    """Load stored statistics, or compute and cache those of a folder of images.

    Args:
        source: A .safetensors file of statistics, or a folder of images, or of files of
            statistics `reference-PROTOCOL.safetensors`.
        protocol: The evaluation's protocol; stored statistics must match it.
        option: Name of the option that gave the source, for error messages.
        batch_size: Images per batch.
        device: Device to compute on.
        progress: Label of a progress bar; None shows none.

    Raises:
        UsageError: If the source cannot be read, or was computed with another protocol.
    """
    path = Path(resolve(source))
    if path.is_dir() and (stored := sorted(path.glob(stored_name("*")))):
        path /= stored_name(protocol.name)
        if not path.is_file():
            raise UsageError(
                f"--{option}: {source!r} has statistics of other protocols ({stored[0].name}), but "
                f"no {path.name}. Compute them with prepare-coco, or give a folder of images."
            )
    if not path.is_dir():
        statistics = Statistics.load(path, option)
        statistics.check_protocol(protocol, source, option)
        return statistics
    files = list_images(path, option)
    cached = cache_folder() / "references" / _name(path, files, protocol)
    # All processes must agree; machines may have separate caches.
    is_cached = all(gather([cached.is_file()]))
    if is_cached:
        statistics = Statistics.load(cached, option)
    else:
        statistics = compute_statistics(files, protocol, option, batch_size, device, progress)
    statistics.about.update(source=str(path.resolve()), files=_listing_hash(path, files))
    if process()[0] == 0 and not is_cached:
        try:
            statistics.save(cached)
            rank_zero_info(f"Cached the statistics of {source} in {cached}.")
        except OSError as error:
            rank_zero_warn(f"Could not cache the statistics of {source} in {cached} ({error}).")
    return statistics


def stored_name(protocol: str) -> str:
    """Return the name of a protocol's statistics in a folder."""
    return f"reference-{protocol}.safetensors"


def load_references(
    scores: Sequence[Loaded],
    source: str | None,
    option: str,
    asked: str,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> None:
    """Load what scores compare with; scores with the same network and preprocessing share it.

    Args:
        scores: The scores.
        source: The reference, as for `load_reference`, but for the teacher's images.
        option: Name of the option that gave it, for error messages.
        asked: Name of the option that asked for the scores.
        batch_size: Images per batch.
        device: Device to compute on.
        progress: Label of a progress bar; None shows none.

    Raises:
        UsageError: If a reference is missing, cannot be read, or is of another protocol.
    """
    found: dict[tuple[int, str], Statistics] = {}
    for score in scores:
        if not score.about.compare:
            continue
        own = score.name == TEACHER
        if not (place := score.source if own else source):
            raise UsageError(
                f"--{asked}: {score.name} compares with reference images. Give --{option}."
            )
        key = (id(score.chain), place)
        if key not in found:
            named = f"{asked}.{score.name}" if own else option
            found[key] = load_reference(place, score.chain, named, batch_size, device, progress)
        score.reference = found[key]


@tf32(False)  # whatever the run allows: statistics are stored and used by other runs
def compute_statistics(
    files: list[Path],
    protocol: EvaluationProtocol,
    option: str,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Statistics:
    """Compute the statistics of image files; each process reads its share.

    Raises:
        UsageError: If there are too few images, all have the same features, or some cannot be
            read (the message names them).
    """
    check_enough(len(files), option)
    collector = Collector(protocol)
    collector.reset(device)
    reader = ImageReader(files)
    for _, images in reader.read(share_of(len(files), batch_size), progress):
        collector.update(protocol.prepare(images))
    reader.check(option)
    statistics = collector.compute()
    # Free the device memory: training may hold the statistics for days before it scores.
    statistics = statistics._replace(features=statistics.features.cpu())
    collector.reset("cpu")
    if bool((statistics.features == statistics.features[0]).all()):
        raise UsageError(
            f"--{option}: all of {len(files)} images have the same features, so no score can be "
            "computed against them. Give images that differ."
        )
    return statistics


def _listing_hash(folder: Path, files: list[Path]) -> str:
    """Hash the relative paths and sizes of the files; a copied folder has the same hash."""
    names = ((file, file.relative_to(folder).as_posix()) for file in files)
    return text_hash(f"{name!a} {file.stat().st_size}" for file, name in names)


def _name(folder: Path, files: list[Path], protocol: EvaluationProtocol) -> str:
    """Return the cache file name for these files, their sizes and times, and the protocol."""
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    listed = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    about = json.dumps([str(folder.resolve()), listed, protocol.identity], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    return f"{folder.name}-{protocol.name}-{digest}.safetensors"
