"""The network, a module for each box of the paper's figure: encoder, prompts, decoder, and SAM as a whole."""
