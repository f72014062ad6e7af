"""Families of diffusion models, behind one interface."""
