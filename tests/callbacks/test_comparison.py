"""The comparison with the teacher on a full disk."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from PIL import Image

from sid_lsg.callbacks.comparison import Row, save_and_log


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    scores: Any = None  # not drawn
    rows = [Row(name, scores, 0.1, 1, torch.zeros(1, 3, 8, 8)) for name in ("teacher", "SiD-LSG")]
    trainer = Trainer(logger=False, default_root_dir=tmp_path, accelerator="cpu")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.warns(UserWarning, match="comparison's images .*No space left on device"):
        save_and_log(rows, ["a red cat"], [None], trainer)
    assert not list(tmp_path.glob("*.png"))
