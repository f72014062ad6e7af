"""Read checkpoints of the official SiD-LSG code, which are dictionaries of pickled networks."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from sid_lsg.checkpoints.inert_pickle import quoted
from sid_lsg.checkpoints.module_pickle import StoredTensor, config, read_modules, weights
from sid_lsg.messages.errors import UsageError

_GIVE = "Give a network-snapshot-*.pkl of the official code, or one of its released .pkl files."
_OTHERS = {
    b"PK\x03\x04": "is a zip file of torch.save, such as a training-state-*.pt or a checkpoint of "
    f"this project (which --model and `export` accept directly). {_GIVE}",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.": f"is an old file of torch.save. {_GIVE}",
    b"\x1f\x8b": "is compressed with gzip. Unpack it first.",
    b"version https://git-lfs": "is a pointer of Git LFS. Download the file that it points to.",
}  # first bytes of a file: what it is and what to do
_SAFETENSORS = (
    "is a safetensors file, which needs no import: put it as diffusion_pytorch_model.safetensors "
    "beside the config.json in the unet/ of a diffusers folder, and use that folder as a model."
)


def read_official(
    checkpoint: str, key: str = "ema"
) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Read a network of an official checkpoint without executing code.

    Args:
        checkpoint: The .pkl file; tensors are read from it when they are loaded.
        key: The network's name in the file.

    Returns:
        The tensors by their names in the network's `state_dict`, and its recorded options.

    Raises:
        UsageError: If it is not such a file, or has no such network.
    """
    path = Path(checkpoint).expanduser()
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"--checkpoint: {str(path)!r} {what}. {_GIVE}")
    try:
        with path.open("rb") as file:
            start = file.read(32)
        for signature, what in _OTHERS.items():
            if start.startswith(signature):
                raise UsageError(f"--checkpoint: {str(path)!r} {what}")
        if start[8:10] == b'{"':
            raise UsageError(f"--checkpoint: {str(path)!r} {_SAFETENSORS}")
        networks = read_modules(path)
        if type(networks) is not dict:
            raise UnpicklingError("it is not a dictionary of networks")
        if key not in networks:
            names = ", ".join(quoted(name) for name in [*networks][:10])
            raise UsageError(
                f"--key: {str(path)!r} holds no {key!r}; it holds {names or 'nothing'}."
            )
        return weights(networks[key]), config(networks[key])
    except OSError as error:
        raise UsageError(
            f"--checkpoint: cannot read {str(path)!r} ({error.strerror or error})."
        ) from error
    except UnpicklingError as error:
        raise UsageError(
            f"--checkpoint: {str(path)!r} is rejected, and none of its code was executed: {error}. "
            f"{_GIVE} If it is one, download it again."
        ) from error
