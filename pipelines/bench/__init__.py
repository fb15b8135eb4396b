"""How fast this machine makes masks, beside the released generator."""
