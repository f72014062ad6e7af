"""SiD-LSG: distil a text-to-image diffusion model into a one-step generator, from prompts only."""

__version__ = "0.1.0"
