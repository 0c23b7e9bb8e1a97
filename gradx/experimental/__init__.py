"""`optax.experimental`, mirrored (`core/mirror.py`): names that may still change."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from gradx.experimental import aggregating as aggregating
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
