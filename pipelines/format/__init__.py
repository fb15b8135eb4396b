"""docs/format.md in code: what lies in a corpus's folder, file by file and column by column."""
