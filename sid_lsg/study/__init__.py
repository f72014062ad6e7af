"""A grid of fits, scored alike: what to run, running it, and its tables and plots."""
