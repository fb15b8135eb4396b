"""The statistics of a corpus, as tables and as a page."""
