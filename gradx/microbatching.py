"""`optax.microbatching`, mirrored (`core/mirror.py`): functions of a batch, evaluated in parts."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from optax.microbatching import (
        AccumulationType as AccumulationType,
        Accumulator as Accumulator,
        micro_grad as micro_grad,
        micro_vmap as micro_vmap,
        microbatch as microbatch,
        reshape_batch_axis as reshape_batch_axis,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
