"""Turns a file's bytes into upright RGB pixels, and rejects damage. The policy is docs/inputs.md."""
