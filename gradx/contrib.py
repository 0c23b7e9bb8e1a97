"""`optax.contrib`, mirrored (`core/mirror.py`): contributed optimizers, gradx's own."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from gradx.optimizers.second_order.hutchinson import (
        HutchinsonState as HutchinsonState,
        hutchinson_estimator_diag_hessian as hutchinson_estimator_diag_hessian,
    )
    from gradx.optimizers.averaging.interpolation import (
        ScheduleFreeState as ScheduleFreeState,
        schedule_free_eval_params as schedule_free_eval_params,
    )
    from gradx.pieces.norms import NormalizeState as NormalizeState, normalize as normalize
    from gradx.optimizers.first_order.acprop_adopt import (
        acprop as acprop,
        adopt as adopt,
        scale_by_acprop as scale_by_acprop,
        scale_by_adopt as scale_by_adopt,
    )
    from gradx.optimizers.first_order.ademamix import (
        ScaleByAdemamixState as ScaleByAdemamixState,
        ScaleBySimplifiedAdEMAMixState as ScaleBySimplifiedAdEMAMixState,
        ademamix as ademamix,
        scale_by_ademamix as scale_by_ademamix,
        scale_by_simplified_ademamix as scale_by_simplified_ademamix,
        simplified_ademamix as simplified_ademamix,
    )
    from gradx.optimizers.tuning_free.dog import (
        DoGState as DoGState,
        DoWGState as DoWGState,
        dog as dog,
        dowg as dowg,
    )
    from gradx.optimizers.first_order.dual_averaging import (
        COCOBState as COCOBState,
        MadgradState as MadgradState,
        cocob as cocob,
        madgrad as madgrad,
        scale_by_cocob as scale_by_cocob,
        scale_by_madgrad as scale_by_madgrad,
    )
    from gradx.optimizers.matrix.galore import (
        GaLoreDimensionNumbers as GaLoreDimensionNumbers,
        GaLoreState as GaLoreState,
        galore as galore,
        scale_by_galore as scale_by_galore,
    )
    from gradx.optimizers.tuning_free.polyak_momo import (
        MomoAdamState as MomoAdamState,
        MomoState as MomoState,
        momo as momo,
        momo_adam as momo_adam,
    )
    from gradx.optimizers.matrix.muon import (
        MuonDimensionNumbers as MuonDimensionNumbers,
        MuonState as MuonState,
        muon as muon,
        scale_by_muon as scale_by_muon,
    )
    from gradx.optimizers.first_order.dpsgd import (
        DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
        differentially_private_aggregate as differentially_private_aggregate,
        dpsgd as dpsgd,
    )
    from gradx.optimizers.tuning_free.prodigy import (
        DAdaptAdamWState as DAdaptAdamWState,
        ProdigyState as ProdigyState,
        dadapt_adamw as dadapt_adamw,
        prodigy as prodigy,
    )
    from gradx.optimizers.second_order.sophia import SophiaState as SophiaState, sophia as sophia
    from gradx.optimizers.tuning_free.mechanic import (
        MechanicState as MechanicState,
        mechanize as mechanize,
    )
    from gradx.pieces.plateau import (
        ReduceLROnPlateauState as ReduceLROnPlateauState,
        reduce_on_plateau as reduce_on_plateau,
    )
    from gradx.combinators.sam import SAMState as SAMState, sam as sam
    from gradx.optimizers.averaging.schedule_free import (
        schedule_free as schedule_free,
        schedule_free_adamw as schedule_free_adamw,
        schedule_free_sgd as schedule_free_sgd,
    )
    from gradx.combinators.views import (
        SplitRealAndImaginaryState as SplitRealAndImaginaryState,
        split_real_and_imaginary as split_real_and_imaginary,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
