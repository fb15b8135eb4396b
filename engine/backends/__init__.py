"""How the work between the encoder and the records is done: on a CPU in loops, on a device in large
operations.
"""
