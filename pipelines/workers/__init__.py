"""Shards onto machines: what is sent, who gets it, what a death means. `ray_actors`, `cluster` know Ray."""
