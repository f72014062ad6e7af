"""The method of the paper as pure functions of tensors.

No Lightning, option, message, file or process group: a network is a function here. Docstrings
name sections of docs/method/method.md. That page maps the paper's symbols to this code.

May import no other wing.
"""
