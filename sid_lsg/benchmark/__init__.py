"""Measure the speed and memory of a training step, and compare it with a baseline.

May import every wing but commands, app, study and callbacks.
"""
