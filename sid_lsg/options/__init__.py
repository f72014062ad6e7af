"""Options of a training as dataclasses that check themselves.

Imports only messages and the plain numbers of method, and no torch: every command can use them.
"""
