"""Collections: sources, shards, the run, reports. Knows `engine` and `model`; only `cluster` imports Ray."""
