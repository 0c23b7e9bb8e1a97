"""What a compiler makes of a row, for a chip that need not be there: bytes and temporaries."""
