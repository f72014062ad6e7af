"""Images as pixels, and folders of images.

May import distributed, files, messages.
"""
