"""The embedded teacher, trained on Fashion-MNIST, and the recipe that made it.

May import metrics, data, images, files, messages.
"""
