"""gradx: functional gradient transformations for JAX, under the names of Optax.

The maths of each optimizer is written once, for one array: this is its rule. One mechanism lifts
all rules over trees, groups of parameters, dtypes, devices and hyperparameters.

All public names are here, flat; each module lists its own in `__all__`. Losses and other names that
only Optax has are looked up there when they are asked for (`gradx/core/mirror.py`).
"""

import types
import typing

from gradx.combinators.accumulate import *
from gradx.combinators.asam import *
from gradx.combinators.cautious import *
from gradx.combinators.chain import *
from gradx.combinators.conditional import *
from gradx.combinators.inject import *
from gradx.combinators.leave_out import *
from gradx.combinators.look_sam import *
from gradx.combinators.lookahead import *
from gradx.combinators.partition import *
from gradx.combinators.sam import *
from gradx.combinators.selective import *
from gradx.combinators.views import *
from gradx.contract import *
from gradx.core import mirror, moved
from gradx.core.state_map import *
from gradx.core.transform import *
from gradx.core.updates import *
from gradx.inspection.config import *
from gradx.inspection.describe import *
from gradx.inspection.hyperparams import *
from gradx.inspection.set_hyperparams import *
from gradx.lift.leafwise import *
from gradx.lift.mapped import *
from gradx.lift.matrices import *
from gradx.lift.matrix_names import *
from gradx.lift.matrixwise import *
from gradx.lift.sharing import *
from gradx.line_search.backtracking import *
from gradx.line_search.objective import *
from gradx.line_search.zoom import *
from gradx.numbers.live import *
from gradx.numbers.paths import *
from gradx.numbers.sources import *
from gradx.optimizers.averaging.ema_nesterov import *
from gradx.optimizers.averaging.gpa import *
from gradx.optimizers.averaging.interpolation import *
from gradx.optimizers.averaging.schedule_free import *
from gradx.optimizers.first_order.acprop_adopt import *
from gradx.optimizers.first_order.adabelief_radam_yogi import *
from gradx.optimizers.first_order.adafactor import *
from gradx.optimizers.first_order.adagrad import *
from gradx.optimizers.first_order.adam import *
from gradx.optimizers.first_order.adan import *
from gradx.optimizers.first_order.ademamix import *
from gradx.optimizers.first_order.amsgrad_adamax import *
from gradx.optimizers.first_order.dpsgd import *
from gradx.optimizers.first_order.dual_averaging import *
from gradx.optimizers.first_order.mars import *
from gradx.optimizers.first_order.optimistic import *
from gradx.optimizers.first_order.rmsprop import *
from gradx.optimizers.first_order.rprop import *
from gradx.optimizers.first_order.sgd import *
from gradx.optimizers.first_order.sm3 import *
from gradx.optimizers.layerwise.trust_ratio import *
from gradx.optimizers.matrix.adamuon import *
from gradx.optimizers.matrix.dion import *
from gradx.optimizers.matrix.dion2 import *
from gradx.optimizers.matrix.galore import *
from gradx.optimizers.matrix.hyperball import *
from gradx.optimizers.matrix.kl_shampoo import *
from gradx.optimizers.matrix.kl_soap import *
from gradx.optimizers.matrix.muon import *
from gradx.optimizers.matrix.normuon import *
from gradx.optimizers.matrix.orthogonal import *
from gradx.optimizers.matrix.psgd import *
from gradx.optimizers.matrix.qk_clip import *
from gradx.optimizers.matrix.scion import *
from gradx.optimizers.matrix.shampoo import *
from gradx.optimizers.matrix.soap import *
from gradx.optimizers.matrix.splus import *
from gradx.optimizers.second_order.hutchinson import *
from gradx.optimizers.second_order.lbfgs import *
from gradx.optimizers.second_order.sophia import *
from gradx.optimizers.sign.lion_signum import *
from gradx.optimizers.tuning_free.dog import *
from gradx.optimizers.tuning_free.dog_by_leaf import *
from gradx.optimizers.tuning_free.mechanic import *
from gradx.optimizers.tuning_free.polyak_momo import *
from gradx.optimizers.tuning_free.prodigy import *
from gradx.pieces.clip import *
from gradx.pieces.clip_by_history import *
from gradx.pieces.collectives import *
from gradx.pieces.constraints import *
from gradx.pieces.every import *
from gradx.pieces.layers import *
from gradx.pieces.moments import *
from gradx.pieces.momentum import *
from gradx.pieces.monitoring import *
from gradx.pieces.norms import *
from gradx.pieces.per_example import *
from gradx.pieces.plateau import *
from gradx.pieces.preprocessing import *
from gradx.pieces.scaling import *
from gradx.pieces.weight_decay import *
from gradx.running.averages import *
from gradx.running.eval_params import *
from gradx.running.guards import *
from gradx.running.lawa import *
from gradx.running.metrics import *
from gradx.running.restart import *
from gradx.running.restore_points import *
from gradx.running.spikes import *
from gradx.running.transfer import *
from gradx.running.watch import *
from gradx.schedules.cooldowns import *
from gradx.schedules.curves import *
from gradx.schedules.piecewise import *
from gradx.schedules.repeating import *
from gradx.schedules.schedule_fn import *
from gradx.schedules.sequences import *

__version__ = "0.1.0"

moved.find()

__all__ = [
    name
    for name, value in dict(globals()).items()
    if not (name.startswith("_") or isinstance(value, types.ModuleType))
]

if typing.TYPE_CHECKING:
    # isort: off
    from optax import (
        bias_correction as bias_correction,
        convex_kl_divergence as convex_kl_divergence,
        cosine_distance as cosine_distance,
        cosine_similarity as cosine_similarity,
        ctc_loss as ctc_loss,
        ctc_loss_with_forward_probs as ctc_loss_with_forward_probs,
        generalized_kl_divergence as generalized_kl_divergence,
        hinge_loss as hinge_loss,
        huber_loss as huber_loss,
        kl_divergence as kl_divergence,
        l2_loss as l2_loss,
        log_cosh as log_cosh,
        matrix_inverse_pth_root as matrix_inverse_pth_root,
        microbatch as microbatch,
        multi_normal as multi_normal,
        nnls as nnls,
        ntxent as ntxent,
        power_iteration as power_iteration,
        safe_norm as safe_norm,
        safe_root_mean_squares as safe_root_mean_squares,
        safe_softmax_cross_entropy as safe_softmax_cross_entropy,
        scale_gradient as scale_gradient,
        sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
        sigmoid_focal_loss as sigmoid_focal_loss,
        smooth_labels as smooth_labels,
        softmax_cross_entropy as softmax_cross_entropy,
        softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
        squared_error as squared_error,
        update_infinity_moment as update_infinity_moment,
        update_moment as update_moment,
        update_moment_per_elem_norm as update_moment_per_elem_norm,
    )
    from gradx import (
        assignment as assignment,
        contrib as contrib,
        experimental as experimental,
        losses as losses,
        microbatching as microbatching,
        perturbations as perturbations,
        projections as projections,
        schedules as schedules,
        second_order as second_order,
        transforms as transforms,
        tree as tree,
        tree_utils as tree_utils,
    )
else:
    __getattr__, __dir__, __all__ = mirror.mirror(__name__, __all__)
