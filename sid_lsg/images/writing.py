"""Write PNG files in threads, while the next images are sampled."""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sid_lsg.images.pixels import save_png

_THREADS = min(8, os.cpu_count() or 1)  # Pillow compresses without the GIL
_WAITING = 16  # images per thread that may wait, so that memory use is bounded


class PngWriter:
    """A context that writes images in threads; all files are complete when it ends.

    The files do not depend on the number of threads. After an error in the context, the images
    that were given are still written.
    """

    def __init__(self, threads: int = _THREADS) -> None:
        """Write with the given number of threads."""
        self._pool = ThreadPoolExecutor(threads, "png")
        self._limit = threads * _WAITING
        self._pending: deque[Future[None]] = deque()

    def save(self, image: Image.Image, path: Path, about: PngInfo | None = None) -> None:
        """Write a file soon; the image must not change.

        Raises:
            OSError: If an earlier file could not be written.
        """
        self._pending.append(self._pool.submit(save_png, image, path, about))
        while self._pending and (self._pending[0].done() or len(self._pending) > self._limit):
            self._pending.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for all files.

        Raises:
            OSError: If one could not be written, and the context ended without an error.
        """
        self._pool.shutdown()
        if error is None:
            for written in self._pending:
                written.result()
