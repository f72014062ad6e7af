"""Files and folders: where they are, how they are written, what they hold."""
