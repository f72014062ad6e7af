"""Plan and run grids of fits, and turn their scores into tables and plots.

May import training, data, files, messages, method.
"""
