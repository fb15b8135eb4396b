"""Photographs with masks that somebody drew, or a model found: what is trained and scored on."""
