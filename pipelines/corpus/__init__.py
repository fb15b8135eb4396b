"""Reading a corpus: rows in any order, masks and images when they are asked for. No torch, no Ray."""
