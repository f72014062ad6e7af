"""Prompts, captions and real images: from files to batches.

May import teachers, images, distributed, files, messages, method.
"""
