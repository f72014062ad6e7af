"""Read prompts, captions and real images from files and batch them.

May import teachers, images, distributed, files, messages, method.
"""
