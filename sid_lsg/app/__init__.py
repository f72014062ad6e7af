"""The app: a Gradio page that compares a generator with its teacher.

May import generation, images, files, messages.
"""
