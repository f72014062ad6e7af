"""How fast an iteration is, in how much memory, and against what."""
