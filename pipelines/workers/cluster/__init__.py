"""The Ray that workers run on: one that is there already, or one of the run's own."""
