"""A trained generator for other software: diffusers folders, ONNX, model cards, the Hub."""
