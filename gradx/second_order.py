"""`optax.second_order`, mirrored (`core/mirror.py`): diagonals of Hessians (deprecated there)."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from optax.second_order import (
        fisher_diag as fisher_diag,
        hessian_diag as hessian_diag,
        hvp as hvp,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
