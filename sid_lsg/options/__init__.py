"""Options of a training as dataclasses that validate themselves.

May import messages and the plain numbers of method. It does not import torch, so every command can
use it.
"""
