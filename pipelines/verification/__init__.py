"""Whether a corpus is what it says: files, shards, rows and every mask's code."""
