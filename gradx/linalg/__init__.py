"""Linear algebra for the matrix optimizers: polar factors, eigenbases, triangular factors.

These functions take arrays, not trees. May import: `lift`, `numbers`, `core`, `lowering`.
"""
