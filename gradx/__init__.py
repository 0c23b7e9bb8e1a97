"""gradx: functional gradient transformations for JAX.

The names of Optax, with one mechanism behind them: the maths of an optimizer is written once, for
one array, and lifted over trees, groups of parameters, dtypes, devices and hyperparameters.

Every public name is here, flat; each module lists its own in `__all__`. What Optax has besides,
losses and namespaces, is looked up there when it is asked for (`gradx/mirror.py`).
"""

import types
import typing

from gradx import mirror
from gradx.clip import *
from gradx.combine import *
from gradx.config import *
from gradx.constrain import *
from gradx.contract import *
from gradx.core import *
from gradx.curvature import *
from gradx.curves import *
from gradx.cycles import *
from gradx.decay import *
from gradx.distributed.collectives import *
from gradx.gradients import *
from gradx.groups import *
from gradx.inspect import *
from gradx.interpolation import *
from gradx.leafwise import *
from gradx.live import *
from gradx.mapped import *
from gradx.matrices import *
from gradx.matrix_names import *
from gradx.matrixwise import *
from gradx.momenta import *
from gradx.moments import *
from gradx.norms import *
from gradx.orthogonal import *
from gradx.per_example import *
from gradx.piecewise import *
from gradx.rules.adagrad import *
from gradx.rules.adam import *
from gradx.rules.adam_delayed import *
from gradx.rules.adam_max import *
from gradx.rules.adam_mix import *
from gradx.rules.adam_variance import *
from gradx.rules.adamuon import *
from gradx.rules.adan import *
from gradx.rules.cover import *
from gradx.rules.dion import *
from gradx.rules.dion2 import *
from gradx.rules.distance import *
from gradx.rules.distance_by_leaf import *
from gradx.rules.dual_averaging import *
from gradx.rules.factored import *
from gradx.rules.galore import *
from gradx.rules.kl_shampoo import *
from gradx.rules.kl_soap import *
from gradx.rules.lbfgs import *
from gradx.rules.loss_aware import *
from gradx.rules.mars import *
from gradx.rules.muon import *
from gradx.rules.normuon import *
from gradx.rules.optimistic import *
from gradx.rules.privacy import *
from gradx.rules.prodigy import *
from gradx.rules.psgd import *
from gradx.rules.qk_clip import *
from gradx.rules.rmsprop import *
from gradx.rules.rprop import *
from gradx.rules.scion import *
from gradx.rules.sgd import *
from gradx.rules.shampoo import *
from gradx.rules.sign import *
from gradx.rules.soap import *
from gradx.rules.sophia import *
from gradx.rules.splus import *
from gradx.rules.trust import *
from gradx.scale import *
from gradx.search.backtracking import *
from gradx.search.line import *
from gradx.search.zoom import *
from gradx.selective import *
from gradx.setting import *
from gradx.sharing import *
from gradx.sources import *
from gradx.state_map import *
from gradx.step import *
from gradx.wrap.accumulate import *
from gradx.wrap.cautious import *
from gradx.wrap.conditional import *
from gradx.wrap.every import *
from gradx.wrap.hyperball import *
from gradx.wrap.inject import *
from gradx.wrap.lookahead import *
from gradx.wrap.mechanic import *
from gradx.wrap.monitoring import *
from gradx.wrap.plateau import *
from gradx.wrap.sam import *
from gradx.wrap.schedule_free import *
from gradx.wrap.views import *

__version__ = "0.1.0"

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
