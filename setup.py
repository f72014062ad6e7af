"""Add the shipped configs to the package, which pyproject.toml cannot do.

The configs are in configs/, beside the package, where people look for them. A wheel holds them as
sid_lsg/configs/, so that `--config package:configs/demo.yaml` works from any directory.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sid_lsg*"]), "sid_lsg.configs"],
    package_dir={"sid_lsg.configs": "configs"},
)
