"""Tests about what a compiler makes of a program say which compiler they are about."""

from __future__ import annotations

import jaxlib.version
import pytest

COUNTED = (0, 10)
HERE = tuple(int(part) for part in jaxlib.version.__version__.split(".")[:2])

# Which buffers a program needs is a fact about the compiler, not about the algorithm: jaxlib 0.12
# wants one or two arrays more for LAMB, SM3, schedule-free and gated rules, and so does 0.8.
counts_buffers = pytest.mark.skipif(
    HERE != COUNTED,
    reason="the buffers are those that the compiler of jaxlib 0.10 needs",
)
