"""Change how a network trains or computes: LoRA, initial weights, memory, precision, compilation.

May import teachers, distributed, files, options, messages.
"""
