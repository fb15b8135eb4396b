"""From logits to pixels of the image, computed only where a mask's edge is."""
