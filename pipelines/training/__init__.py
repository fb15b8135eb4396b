"""Teaching a model: `maskmill train` and `maskmill pretrain`."""
