"""`optax.perturbations`, mirrored (`core/mirror.py`): differentiable perturbed maxima."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from optax.perturbations import (
        Gumbel as Gumbel,
        Normal as Normal,
        make_perturbed_fun as make_perturbed_fun,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
