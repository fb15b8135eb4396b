"""One way to write a file, whole or not at all, on a disk or in a store; and the lease of a corpus."""
