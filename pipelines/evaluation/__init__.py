"""How good a model is, against masks that people drew, and how far two corpora agree: `maskmill evaluate`."""
