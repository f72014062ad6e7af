"""Names of the files in a run directory."""

CONFIG = "config.yaml"  # where it is, a run has been
