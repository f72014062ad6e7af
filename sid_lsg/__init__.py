"""SiD-LSG: distil a text-to-image diffusion model into a one-step generator, from prompts only.

The public names are loaded when they are first used: importing the package imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sid_lsg.files.moved import find_moved

if TYPE_CHECKING:
    from sid_lsg.data.prompts import PromptDataModule
    from sid_lsg.options.guidance import Guidance
    from sid_lsg.training.module import SiDLSG

__all__ = ["Guidance", "PromptDataModule", "SiDLSG"]
__version__ = "0.2.0"

_MODULES = {
    "Guidance": "sid_lsg.options.guidance",
    "PromptDataModule": "sid_lsg.data.prompts",
    "SiDLSG": "sid_lsg.training.module",
}

find_moved()


def __getattr__(name: str) -> Any:
    """Load a public name from its module.

    Raises:
        AttributeError: If there is no such name.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """List the public names too, loaded or not."""
    return sorted({*globals(), *__all__})
