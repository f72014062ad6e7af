"""Import modules by their names in version 0.1.0, for scripts that read data with them."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "sid_lsg.corpus": "sid_lsg.data.corpus",
    "sid_lsg.real_images": "sid_lsg.data.real_images",
    "sid_lsg.metrics.captions": "sid_lsg.data.captions",
    "sid_lsg.metrics.folder": "sid_lsg.images.folder",
}


class _Moved(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of a module that moved."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module in its present place under the earlier name, too."""
        name = module.__name__
        warnings.warn(f"{name} is now {MOVED[name]}", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(MOVED[name])


def find_moved() -> None:
    """Find the modules that moved, after all others."""
    sys.meta_path.append(_Moved())
