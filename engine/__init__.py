"""One image: pixels in, mask records out. Knows `model`; no files, no Ray."""
