"""Write the tables of the documentation that are made of stored measurements.

`python -m docs.tables` (or `make tables`) renews what stands in README.md and the pages of docs/
between `<!-- generated: NAME -->` and `<!-- end -->`. The tests check that nothing would change.
"""

from docs.tables import configs, costs, demos, figures, studies
from docs.tables.blocks import BLOCK, FILES, TABLES, cells, renewed

__all__ = [
    "BLOCK",
    "FILES",
    "TABLES",
    "cells",
    "configs",
    "costs",
    "demos",
    "figures",
    "renewed",
    "studies",
]
