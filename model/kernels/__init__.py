"""Loops compiled by Numba for the CPU: what the decoder does to blocks of cells, without ever writing them
out.
"""
