"""The images to compare with: their statistics, computed once."""

import hashlib
import json
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from sid_lsg.distributed.processes import check_enough, gather, process, share_of
from sid_lsg.files.replacing import cache_folder, text_hash
from sid_lsg.files.sources import resolve
from sid_lsg.images.folder import ImageReader, list_images
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.protocol import EvaluationProtocol
from sid_lsg.metrics.statistics import Collector, Statistics


def load_reference(
    source: str,
    protocol: EvaluationProtocol,
    option: str,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Statistics:
    """Load stored statistics, or compute those of a folder's images and keep them.

    Args:
        source: A .safetensors file of statistics, or a folder of images.
        protocol: How the images to be compared become features.
        option: The option that named the source, for messages.
        batch_size: Images at a time.
        device: Where to compute.
        progress: Name for a progress bar; none by default.

    Raises:
        UsageError: If there is nothing to compare with, or it is of another protocol.
    """
    path = Path(resolve(source))
    if not path.is_dir():
        statistics = Statistics.load(path, option)
        statistics.check_protocol(protocol, source, option)
        return statistics
    files = list_images(path, option)
    kept = cache_folder() / "references" / _name(path, files, protocol)
    known = all(gather([kept.is_file()]))  # machines need not share a cache
    if known:
        statistics = Statistics.load(kept, option)
    else:
        statistics = compute_statistics(files, protocol, option, batch_size, device, progress)
    statistics.about.update(source=str(path.resolve()), files=_listing_hash(path, files))
    if process()[0] == 0 and not known:
        try:
            statistics.save(kept)
            rank_zero_info(f"The statistics of {source} are kept in {kept}.")
        except OSError as error:
            rank_zero_warn(f"Could not keep the statistics of {source} in {kept} ({error}).")
    return statistics


def compute_statistics(
    files: list[Path],
    protocol: EvaluationProtocol,
    option: str,
    batch_size: int = 50,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Statistics:
    """Compute the statistics of image files, each process its share.

    Raises:
        UsageError: If they are too few or all the same, or some cannot be read, all of them by
            name.
    """
    check_enough(len(files), option)
    collector = Collector(protocol)
    collector.reset(device)
    reader = ImageReader(files)
    for _, images in reader.read(share_of(len(files), batch_size), progress):
        collector.update(protocol.prepare(images))
    reader.check(option)
    statistics = collector.compute()
    # Leave the device to what comes: a training may hold them for days before it scores.
    statistics = statistics._replace(features=statistics.features.cpu())
    collector.reset("cpu")
    if bool((statistics.features == statistics.features[0]).all()):
        raise UsageError(
            f"--{option}: all of {len(files)} images have the same features, so that nothing can "
            "be compared with them. Give images that differ."
        )
    return statistics


def _listing_hash(folder: Path, files: list[Path]) -> str:
    """Return what tells images from others in their place, wherever they are copied to."""
    names = ((file, file.relative_to(folder).as_posix()) for file in files)
    return text_hash(f"{name!a} {file.stat().st_size}" for file, name in names)


def _name(folder: Path, files: list[Path], protocol: EvaluationProtocol) -> str:
    """Name the statistics of these files, as they are now, under this protocol."""
    stats = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    listed = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    about = json.dumps([str(folder.resolve()), listed, protocol.identity], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    return f"{folder.name}-{protocol.name}-{digest}.safetensors"
