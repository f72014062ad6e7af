"""The embedded teacher `fashion`: its files, and the recipe that made them."""
