"""The Inception network of published FIDs."""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.hub import download_url_to_file

from sid_lsg.files.replacing import cache_folder, replacing
from sid_lsg.files.weights import first_not_finite, weights_hash
from sid_lsg.messages.errors import UsageError
from sid_lsg.metrics.resize import bicubic_float

URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/"
    "inception-2015-12-05.pt"
)
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
FILE = "inception-2015-12-05.pt"


class InceptionFeatures(nn.Module):
    """The TorchScript Inception of 2015-12-05: 2048 pooled features of 299-pixel images.

    `bicubic_float` resizes square images of any size; the network's own resizing aliases and is
    not used.
    """

    input_size = 299

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        """Wrap the network's `layers`, which map [B, 3, 299, 299] in [-1, 1) to features.

        Raises:
            ValueError: If a weight is not finite.
        """
        super().__init__()
        self.layers = network.layers.eval()
        if damaged := first_not_finite(self.layers.state_dict()):
            raise ValueError(f"its weight {damaged} is not finite")
        for parameter in self.layers.parameters():
            parameter.requires_grad_(False)
        self.identity = {
            "network": "inception-2015-12-05",
            "weights_sha256": weights_hash(self.layers.state_dict()),
        }
        self.dimension = int(self._features(torch.zeros(1, 3, 299, 299)).shape[1])

    @classmethod
    def from_file(cls, path: str | None, option: str = "inception") -> "InceptionFeatures":
        """Load a TorchScript file; without a path, download NVIDIA's once and check its hash.

        TorchScript contains no pickled Python objects but is a program: load only trusted files.

        Raises:
            UsageError: If the file is not this network, or cannot be downloaded.
        """
        file = Path(path).expanduser() if path else _fetch(option)
        try:
            return cls(torch.jit.load(file, map_location="cpu"))
        except (OSError, RuntimeError, ValueError, AttributeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(
                f"--{option}: {str(file)!r} is not the TorchScript Inception ({reason[0]}). Give "
                f"the file {FILE} from {URL}."
            ) from error

    def embed(self, images: Tensor) -> Tensor:
        """Embed images [B, 3, S, S], uint8 or float32 in 0..255: [B, D] float32."""
        device = next(self.layers.parameters()).device
        return self._features(bicubic_float(images, self.input_size).to(device))

    @torch.no_grad()
    def _features(self, pixels: Tensor) -> Tensor:
        # Without graph optimization: fused kernels round differently on a GPU.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            return self.layers((pixels - 128) / 128).flatten(1).float()


def _fetch(option: str) -> Path:
    """Return the cached network file; download it first if it is missing or damaged."""
    path = cache_folder() / FILE
    if path.is_file() and _digest(path) == SHA256:
        return path
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        raise UsageError(_missing(option, "HF_HUB_OFFLINE is set"))
    try:
        with replacing(path) as temporary:
            download_url_to_file(URL, str(temporary))
            if (found := _digest(temporary)) != SHA256:
                raise UsageError(
                    f"--{option}: {URL} has the SHA-256 {found}, not {SHA256}: it was changed or "
                    "truncated. Try again, or give a local file."
                )
    except OSError as error:
        raise UsageError(_missing(option, str(error))) from error
    return path


def _missing(option: str, reason: str) -> str:
    return (
        f"--{option}: the protocol needs the Inception network, which cannot be downloaded "
        f"({reason}). Download {URL} on another machine and give the file."
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
