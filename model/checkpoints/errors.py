"""What goes wrong with weights."""

from __future__ import annotations


class CheckpointError(ValueError):
    """Weights that cannot be had or used; the message says what was expected and what to do."""
