"""Batches that fit the memory, what crosses between host and device, and the account of every candidate."""
