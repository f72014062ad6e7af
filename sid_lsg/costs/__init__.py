"""Estimate the FLOPs, memory and hours of a run without running it.

May import training and the wings below it.
"""
