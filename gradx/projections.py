"""`optax.projections`, mirrored (`core/mirror.py`): projections onto convex sets."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from optax.projections import (
        projection_box as projection_box,
        projection_halfspace as projection_halfspace,
        projection_hypercube as projection_hypercube,
        projection_hyperplane as projection_hyperplane,
        projection_l1_ball as projection_l1_ball,
        projection_l1_sphere as projection_l1_sphere,
        projection_l2_ball as projection_l2_ball,
        projection_l2_sphere as projection_l2_sphere,
        projection_linf_ball as projection_linf_ball,
        projection_non_negative as projection_non_negative,
        projection_simplex as projection_simplex,
        projection_vector as projection_vector,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
