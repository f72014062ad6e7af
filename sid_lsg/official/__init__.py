"""Read checkpoints of the official code without executing their pickles.

May import files, messages.
"""
