"""gradx: functional gradient transformations for JAX.

The names of Optax, with one mechanism behind them: the maths of an optimizer is written once, for
one array, and lifted over trees, groups of parameters, dtypes, devices and hyperparameters.
"""

from gradx import tree
from gradx.combine import chain, identity, named_chain, stateless, stateless_with_tree_map
from gradx.core import Transform, apply_updates, recorded, safe_increment
from gradx.decay import WeightDecaySchedule, add_decayed_weights, weights_only
from gradx.groups import MaskedState, PartitionState, freeze, masked, partition, set_to_zero
from gradx.leafwise import leafwise
from gradx.live import HyperparamsState, hyperparams, set_hyperparams, tunable
from gradx.scale import ScaleByScheduleState, scale, scale_by_learning_rate, scale_by_schedule
from gradx.sources import Hyper, by_path, from_call, scaled
from gradx.tree import global_norm

__version__ = "0.1.0"
