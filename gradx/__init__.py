"""gradx: functional gradient transformations for JAX.

The names of Optax, with one mechanism behind them: the maths of an optimizer is written once, for
one array, and lifted over trees, groups of parameters, dtypes, devices and hyperparameters.

Every public name is here, flat; each module lists its own in `__all__`.
"""

from gradx import tree as tree
from gradx.clip import *
from gradx.combine import *
from gradx.config import *
from gradx.core import *
from gradx.cycles import *
from gradx.decay import *
from gradx.distributed.collectives import *
from gradx.gradients import *
from gradx.groups import *
from gradx.inspect import *
from gradx.leafwise import *
from gradx.live import *
from gradx.moments import *
from gradx.norms import *
from gradx.piecewise import *
from gradx.rules.adagrad import *
from gradx.rules.adam import *
from gradx.rules.adam_max import *
from gradx.rules.adam_variance import *
from gradx.rules.rmsprop import *
from gradx.rules.sgd import *
from gradx.rules.sign import *
from gradx.scale import *
from gradx.schedules import *
from gradx.sources import *
from gradx.step import *
from gradx.tree import *

__version__ = "0.1.0"

__all__ = [
    name
    for name, value in dict(globals()).items()
    if not name.startswith("_") and (name == "tree" or not isinstance(value, type(tree)))
]
