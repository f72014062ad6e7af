"""The LightningModule, its options, strategies and gradients, and the run directory.

May import loggers, checkpoints, networks, optimizers, data, teachers, distributed, files, options,
messages, method.
"""
