"""Sample images from any model, and write them into a folder.

May import export, checkpoints, networks, data, teachers, images, distributed, files, options,
messages, method.
"""
