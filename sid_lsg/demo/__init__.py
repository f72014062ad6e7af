"""The embedded teachers, trained on Fashion-MNIST, and the recipes that made them.

May import metrics, data, teachers, images, files, messages.
"""
