"""Compiles rows for a chip that need not be there, and counts bytes and temporaries."""
