"""Shards onto machines: what is sent, who gets it, and what a death means. Only `ray_actors` knows Ray."""
