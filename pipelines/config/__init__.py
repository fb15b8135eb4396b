"""Configuration: what a run may be told, read from YAML and `--set`, held before anything else happens."""
