"""Find, lock, replace and fingerprint files, and read weights.

May import messages.
"""
