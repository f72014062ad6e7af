"""Score images: FID, CLIP, precision and recall, preference models, and their reports.

May import images, distributed, files, messages.
"""
