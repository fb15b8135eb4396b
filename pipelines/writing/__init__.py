"""The life of a corpus that is being made: opened, grown, changed, closed."""
