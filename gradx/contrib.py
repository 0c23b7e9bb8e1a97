"""`optax.contrib`, mirrored (`gradx/mirror.py`): contributed optimizers, gradx's own."""

from typing import TYPE_CHECKING

from gradx.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from gradx.curvature import (
        HutchinsonState as HutchinsonState,
        hutchinson_estimator_diag_hessian as hutchinson_estimator_diag_hessian,
    )
    from gradx.interpolation import (
        ScheduleFreeState as ScheduleFreeState,
        schedule_free_eval_params as schedule_free_eval_params,
    )
    from gradx.norms import (
        NormalizeState as NormalizeState,
        normalize as normalize,
    )
    from gradx.rules.adam_delayed import (
        acprop as acprop,
        adopt as adopt,
        scale_by_acprop as scale_by_acprop,
        scale_by_adopt as scale_by_adopt,
    )
    from gradx.rules.adam_mix import (
        ScaleByAdemamixState as ScaleByAdemamixState,
        ScaleBySimplifiedAdEMAMixState as ScaleBySimplifiedAdEMAMixState,
        ademamix as ademamix,
        scale_by_ademamix as scale_by_ademamix,
        scale_by_simplified_ademamix as scale_by_simplified_ademamix,
        simplified_ademamix as simplified_ademamix,
    )
    from gradx.rules.distance import (
        DoGState as DoGState,
        DoWGState as DoWGState,
        dog as dog,
        dowg as dowg,
    )
    from gradx.rules.dual_averaging import (
        COCOBState as COCOBState,
        MadgradState as MadgradState,
        cocob as cocob,
        madgrad as madgrad,
        scale_by_cocob as scale_by_cocob,
        scale_by_madgrad as scale_by_madgrad,
    )
    from gradx.rules.galore import (
        GaLoreDimensionNumbers as GaLoreDimensionNumbers,
        GaLoreState as GaLoreState,
        galore as galore,
        scale_by_galore as scale_by_galore,
    )
    from gradx.rules.loss_aware import (
        MomoAdamState as MomoAdamState,
        MomoState as MomoState,
        momo as momo,
        momo_adam as momo_adam,
    )
    from gradx.rules.muon import (
        MuonDimensionNumbers as MuonDimensionNumbers,
        MuonState as MuonState,
        muon as muon,
        scale_by_muon as scale_by_muon,
    )
    from gradx.rules.privacy import (
        DifferentiallyPrivateAggregateState as DifferentiallyPrivateAggregateState,
        differentially_private_aggregate as differentially_private_aggregate,
        dpsgd as dpsgd,
    )
    from gradx.rules.prodigy import (
        DAdaptAdamWState as DAdaptAdamWState,
        ProdigyState as ProdigyState,
        dadapt_adamw as dadapt_adamw,
        prodigy as prodigy,
    )
    from gradx.rules.sophia import (
        SophiaState as SophiaState,
        sophia as sophia,
    )
    from gradx.wrap.mechanic import (
        MechanicState as MechanicState,
        mechanize as mechanize,
    )
    from gradx.wrap.plateau import (
        ReduceLROnPlateauState as ReduceLROnPlateauState,
        reduce_on_plateau as reduce_on_plateau,
    )
    from gradx.wrap.sam import (
        SAMState as SAMState,
        sam as sam,
    )
    from gradx.wrap.schedule_free import (
        schedule_free as schedule_free,
        schedule_free_adamw as schedule_free_adamw,
        schedule_free_sgd as schedule_free_sgd,
    )
    from gradx.wrap.views import (
        SplitRealAndImaginaryState as SplitRealAndImaginaryState,
        split_real_and_imaginary as split_real_and_imaginary,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
