"""The method of the paper as pure functions of tensors.

No Lightning, option, message, file or process group: a network is a function here. The page
`docs/method/method.md` maps the paper's symbols to this code.

May import no other wing.
"""
