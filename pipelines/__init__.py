"""Collections: sources, shards, the run, reports. Knows `engine` and `model`; only `pipelines.cluster` imports Ray."""
