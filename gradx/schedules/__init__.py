"""`optax.schedules`, mirrored (`core/mirror.py`): schedules, gradx's own."""

from typing import TYPE_CHECKING

from gradx.core.mirror import mirror

if TYPE_CHECKING:
    # isort: off
    from gradx.contract import Schedule as Schedule, StatefulSchedule as StatefulSchedule
    from gradx.schedules.curves import (
        constant_schedule as constant_schedule,
        cosine_decay_schedule as cosine_decay_schedule,
        exponential_decay as exponential_decay,
        linear_schedule as linear_schedule,
        polynomial_schedule as polynomial_schedule,
    )
    from gradx.schedules.sequences import (
        join_schedules as join_schedules,
        sgdr_schedule as sgdr_schedule,
        warmup_constant_schedule as warmup_constant_schedule,
        warmup_cosine_decay_schedule as warmup_cosine_decay_schedule,
        warmup_exponential_decay_schedule as warmup_exponential_decay_schedule,
    )
    from gradx.numbers.live import (
        InjectHyperparamsState as InjectHyperparamsState,
        InjectStatefulHyperparamsState as InjectStatefulHyperparamsState,
    )
    from gradx.schedules.piecewise import (
        cosine_onecycle_schedule as cosine_onecycle_schedule,
        linear_onecycle_schedule as linear_onecycle_schedule,
        piecewise_constant_schedule as piecewise_constant_schedule,
        piecewise_interpolate_schedule as piecewise_interpolate_schedule,
    )
    from gradx.combinators.inject import (
        WrappedSchedule as WrappedSchedule,
        inject_hyperparams as inject_hyperparams,
        inject_stateful_hyperparams as inject_stateful_hyperparams,
    )
else:
    __getattr__, __dir__, __all__ = mirror(__name__)
