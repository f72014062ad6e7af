"""Sample images from any model and write them to a folder.

May import export, checkpoints, networks, data, teachers, images, distributed, files, options,
messages, method.
"""
