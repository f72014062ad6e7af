"""Prompts, captions and real images, from files to batches."""
