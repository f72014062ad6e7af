"""Launch processes, end them together, and read and reduce sharded tensors.

May import messages.
"""
