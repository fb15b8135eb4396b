"""A page to look at masks, as files or served."""
