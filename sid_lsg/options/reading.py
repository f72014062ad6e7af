"""Read YAML."""

from typing import Any

import yaml

# libyaml reads ten times as fast; a few builds of PyYAML lack it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(text: str) -> Any:
    """Return the data in a text in YAML.

    Raises:
        yaml.YAMLError: If the text is not valid YAML.
    """
    return yaml.load(text, Loader=_Loader)
