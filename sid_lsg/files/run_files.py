"""Names of the files in a run directory."""

CONFIG = "config.yaml"  # its presence marks a folder as a run directory
