"""Errors, checks and formatting of messages to the user.

May import no other wing.
"""
