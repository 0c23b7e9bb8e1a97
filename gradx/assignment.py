"""`optax.assignment`, mirrored (`core/mirror.py`): optimal assignments."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from optax.assignment import (
        base_hungarian_algorithm as base_hungarian_algorithm,
        hungarian_algorithm as hungarian_algorithm,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
