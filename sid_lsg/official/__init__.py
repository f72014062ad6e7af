"""Read checkpoints of the official code without running what they pickle.

May import files, messages.
"""
