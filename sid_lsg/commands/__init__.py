"""The commands beside `fit`: each a function whose signature is its command line."""
