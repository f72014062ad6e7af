"""Checkpoints: written whole or not at all, verified, read and continued from."""
