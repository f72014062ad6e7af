"""Launch processes, and read and reduce sharded tensors.

May import messages.
"""
