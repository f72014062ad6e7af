"""Name a model's weights as its original code does, for software that reads single files.

May import options and messages.
"""
