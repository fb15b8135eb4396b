"""Shards onto machines: what is sent, who gets it, what a death means (`blame`). `ray_actors`, `cluster` know Ray."""
