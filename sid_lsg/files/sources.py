"""Names of files that the package itself holds."""

from importlib.resources import files

PREFIX = "package:"


def resolve(path: str) -> str:
    """Turn `package:demo/fashion` into the path of that file or folder inside the package.

    Shipped configs name the embedded teacher this way, so they work from any directory; every other
    path is returned as it is.
    """
    if not path.startswith(PREFIX):
        return path
    return str(files("sid_lsg").joinpath(path.removeprefix(PREFIX)))
