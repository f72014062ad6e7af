"""Scores of generated images, usable without the trainer."""
