"""Linear algebra that optimizers for matrices are made of: polar factors, eigenbases, triangles.

Functions of arrays, which know nothing of trees. May import: `lift`, `numbers`, `core`, `lowering`.
"""
