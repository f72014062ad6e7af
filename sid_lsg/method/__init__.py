"""The method of the paper as pure functions of tensors.

`docs/method.md` maps the paper's symbols to this code.

May import no other wing.
"""
