"""Images as pixels, and folders of them."""
