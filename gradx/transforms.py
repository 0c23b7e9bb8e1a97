"""`optax.transforms`, mirrored (`core/mirror.py`): pieces and combinators, gradx's own."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from gradx.pieces.clip import (
        adaptive_grad_clip as adaptive_grad_clip,
        clip as clip,
        clip_by_block_rms as clip_by_block_rms,
        clip_by_global_norm as clip_by_global_norm,
        unitwise_clip as unitwise_clip,
        unitwise_norm as unitwise_norm,
    )
    from gradx.combinators.chain import chain as chain, named_chain as named_chain
    from gradx.pieces.constraints import (
        NonNegativeParamsState as NonNegativeParamsState,
        keep_params_nonnegative as keep_params_nonnegative,
    )
    from gradx.contract import (
        ConditionFn as ConditionFn,
        MaskedNode as MaskedNode,
        ShouldSkipUpdateFunction as ShouldSkipUpdateFunction,
    )
    from gradx.pieces.weight_decay import add_decayed_weights as add_decayed_weights
    from gradx.pieces.preprocessing import (
        AddNoiseState as AddNoiseState,
        ZeroNansState as ZeroNansState,
        add_noise as add_noise,
        zero_nans as zero_nans,
    )
    from gradx.combinators.partition import (
        MaskedState as MaskedState,
        PartitionState as PartitionState,
        freeze as freeze,
        masked as masked,
        partition as partition,
    )
    from gradx.pieces.moments import (
        EmaState as EmaState,
        TraceState as TraceState,
        ema as ema,
        trace as trace,
    )
    from gradx.pieces.per_example import (
        per_example_global_norm_clip as per_example_global_norm_clip,
        per_example_layer_norm_clip as per_example_layer_norm_clip,
    )
    from gradx.combinators.selective import selective_transform as selective_transform
    from gradx.combinators.accumulate import (
        MultiSteps as MultiSteps,
        MultiStepsState as MultiStepsState,
    )
    from gradx.combinators.leave_out import (
        skip_large_updates as skip_large_updates,
        skip_not_finite as skip_not_finite,
    )
    from gradx.combinators.conditional import (
        ApplyIfFiniteState as ApplyIfFiniteState,
        ConditionallyMaskState as ConditionallyMaskState,
        ConditionallyTransformState as ConditionallyTransformState,
        apply_if_finite as apply_if_finite,
        conditionally_mask as conditionally_mask,
        conditionally_transform as conditionally_transform,
    )
    from gradx.pieces.monitoring import (
        MonitorState as MonitorState,
        SnapshotState as SnapshotState,
        measure_with_ema as measure_with_ema,
        monitor as monitor,
        snapshot as snapshot,
    )
    from gradx.combinators.views import flatten as flatten
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
