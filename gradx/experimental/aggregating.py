"""`optax.experimental.aggregating`, mirrored (`core/mirror.py`): per-example gradients."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror
from gradx.experimental import means, variances
from gradx.experimental.means import *
from gradx.experimental.variances import *

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = mirror(__name__, [*means.__all__, *variances.__all__])
