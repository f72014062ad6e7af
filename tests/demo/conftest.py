"""A small Fashion-MNIST for the recipes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from sid_lsg.demo.dataset import GARMENTS


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Write a Fashion-MNIST of 40 synthetic photographs: bright rectangles with a dark hole."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("t10k", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 6:22, 8:20] = generator.integers(120, 255, (count, 16, 12))
        images[:, 12:16, 12:16] = 0
        labels = np.arange(count, dtype=np.uint8) % len(GARMENTS)
        for name, array, kind in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
            header = struct.pack(f">HBB{kind}I", 0, 8, kind, *array.shape)
            path = tmp_path / f"{split}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes()))
    return tmp_path
