"""From a file's bytes to upright RGB pixels; damage is rejected. The policy is docs/inputs.md."""
