"""Find, lock, replace and fingerprint files, and read weights.

May import messages, and the reading of YAML from options.
"""
