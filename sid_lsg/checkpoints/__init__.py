"""Write, verify, open and resume from checkpoints; read those of the official code as data.

May import networks, optimizers, data, distributed, files, options, messages.
"""
