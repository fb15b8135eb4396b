"""The commands, as they are typed: what was typed becomes one call. `pipelines.cli` puts them together."""
