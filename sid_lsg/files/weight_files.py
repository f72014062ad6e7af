"""Say which weight files a network has, if none can be loaded."""

import re
from collections.abc import Iterable

from huggingface_hub import HfApi

from sid_lsg.files.sources import Source


class Unusable(ValueError):
    """A network cannot be loaded.

    Attributes:
        remedy: What to do, as a sentence; None if the caller knows best.
    """

    def __init__(self, found: str, remedy: str | None = None) -> None:
        super().__init__(found)
        self.remedy = remedy


_STEMS = ("diffusion_pytorch_model", "model")  # of diffusers and of transformers
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".bin.index.json")
_CONVERT = 'in Python, {0}.from_pretrained("MODEL", {1}).save_pretrained("FOLDER")'


def weight_files(source: Source, folder: str, revision: str | None = None) -> list[str] | None:
    """List the files of a folder or Hub id; None if they are not known.

    Args:
        source: The folder or Hub id.
        folder: A subfolder; "" for none.
        revision: Branch, tag or commit on the Hub.
    """
    if source.kind != "hub":
        place = source.path / folder
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else None
    start = f"{folder}/" if folder else ""
    try:
        files = HfApi().list_repo_files(source.name, revision=revision)
    except Exception:  # offline: the cache may hold everything
        return None
    inside = (file.removeprefix(start) for file in files if file.startswith(start))
    return sorted(name for name in inside if "/" not in name)


def check_weight_files(
    names: Iterable[str], variant: str | None = None, is_part: bool = True
) -> None:
    """Check that a network's files have safetensors weights of a variant.

    Args:
        names: The names of the files.
        variant: The variant; None for none.
        is_part: Whether the network is a part of a diffusers pipeline.

    Raises:
        Unusable: If they have not. The message names the variants or pickle files that there are.
    """
    names = list(names)
    kind = "diffusers.DiffusionPipeline" if is_part else "its class"
    found = {one for name in names if (one := _variant_of(name)) is not None}
    if (variant or "") in found:
        return
    if variant and found:
        others = ", ".join(sorted(filter(None, found))) or "none"
        raise Unusable(
            f"it has no weights of the variant {variant!r}; its variants are: {others}",
            "Give one of these, or leave the variant out.",
        )
    if found:
        (other, *_) = sorted(found)
        raise Unusable(
            f"its weights are only there as the variant {', '.join(sorted(found))}",
            f"Give `fit` --model.loading.variant {other}, or save the model without a variant: "
            f"{_CONVERT.format(kind, f'variant={other!r}')}.".replace("'", '"'),
        )
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        raise Unusable(
            f"its weights are only there as {pickles[0]}, a pickle file, which can run programs; "
            "only safetensors are read",
            "If you trust the file, convert the model: "
            f"{_CONVERT.format(kind, 'use_safetensors=False')}.",
        )
    raise Unusable("it has no weight files: there is no .safetensors file of a network")


def _variant_of(name: str) -> str | None:
    """Return the variant of a file with a network's weights; "" for none, None for other files."""
    for stem in _STEMS:
        whole = re.fullmatch(rf"{stem}(?:\.([\w-]+))?\.safetensors", name)
        index = re.fullmatch(rf"{stem}\.safetensors\.index(?:\.([\w-]+))?\.json", name)
        if match := whole or index:
            return match[1] or ""
    return None
