"""Weights: the public checkpoints, files of tensors, and how they become a network."""
