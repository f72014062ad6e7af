"""Families of diffusion models behind one interface, `base.Teacher`.

A family is one file; `families.py` is the only file that knows all of them.

May import images, files, messages, method.
"""
