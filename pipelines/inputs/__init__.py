"""What the user named becomes a table of images, each with the key that is its name for good."""
