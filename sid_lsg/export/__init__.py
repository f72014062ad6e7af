"""Save a generator for other software: diffusers folders, model cards, LoRA, ONNX, the Hub.

May import teachers, networks, files, options, messages, method.
"""
