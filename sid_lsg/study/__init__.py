"""Plan and run grids of fits, and make tables and plots of their scores.

May import training, data, files, messages, method.
"""
