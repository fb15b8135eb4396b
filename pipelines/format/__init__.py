"""docs/format.md in code: what lies in a corpus's folder, column by column and file by file."""
