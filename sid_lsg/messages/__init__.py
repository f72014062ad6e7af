"""Errors, checks and wording of what users read.

May import no other wing.
"""
