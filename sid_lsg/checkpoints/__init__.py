"""Write, verify, open and resume from checkpoints.

May import networks, optimizers, data, distributed, files, options, messages.
"""
