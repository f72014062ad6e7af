"""Images of any model, into a folder."""
