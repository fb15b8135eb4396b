"""From a file's bytes to upright RGB pixels; damage is refused. The policy is docs/inputs.md."""
