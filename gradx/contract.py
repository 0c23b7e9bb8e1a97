"""The contract, a pair of functions `(init, update)`: Optax's types, under Optax's names.

They are Optax's own objects, not copies of them. So `isinstance` and `is` give the same answer in
both libraries, and annotations of one library fit functions of the other.

=================================  ==============================================================
name                               what it is
=================================  ==============================================================
`GradientTransformation`           the pair `(init, update)`
`GradientTransformationExtraArgs`  the same, with an `update` that accepts extra arguments
`TransformInitFn`                  `params -> state`
`TransformUpdateFn`                `(updates, state, params=None) -> (updates, state)`
`TransformUpdateExtraArgsFn`       the same with `**extra_args`
`Params`                           a tree of parameters
`Updates`                          a tree like the parameters: gradients, or the steps made of them
`OptState`                         a tree of arrays, the state of a transformation
`EmptyState`                       the state of a transformation that keeps nothing
`AdaptiveGradClipState`            `EmptyState`, which has several names in Optax
`AddDecayedWeightsState`           `EmptyState`
`ClipByGlobalNormState`            `EmptyState`
`ClipState`                        `EmptyState`
`ScaleState`                       `EmptyState`
`MaskedNode`                       stands in a tree for a leaf that a mask hides; has no leaves
`Schedule`                         `count -> number`
`ScalarOrSchedule`                 a number or a schedule; `gradx.Hyper` takes more than these
`StatefulSchedule`                 a schedule with a state, for `gradx.inject_hyperparams`
`MaskOrFn`                         a tree of bools, or a function that makes one, or `None`
`ConditionFn`                      `(step, **extra_args) -> bool`, for `conditionally_transform`
`ShouldSkipUpdateFunction`         `(updates, step, params) -> (skip, info)`, for `MultiSteps`
=================================  ==============================================================

There are two functions as well, `with_extra_args_support` and `init_empty_state`.
"""

from __future__ import annotations

from typing import Any

from optax import (
    EmptyState,
    GradientTransformation,
    GradientTransformationExtraArgs,
    MaskedNode,
    MaskOrFn,
    OptState,
    Params,
    ScalarOrSchedule,
    Schedule,
    ShouldSkipUpdateFunction,
    TransformInitFn,
    TransformUpdateExtraArgsFn,
    TransformUpdateFn,
    Updates,
)
from optax.schedules import StatefulSchedule
from optax.transforms import ConditionFn

__all__ = [
    "AdaptiveGradClipState",
    "AddDecayedWeightsState",
    "ClipByGlobalNormState",
    "ClipState",
    "ConditionFn",
    "EmptyState",
    "GradientTransformation",
    "GradientTransformationExtraArgs",
    "MaskOrFn",
    "MaskedNode",
    "OptState",
    "Params",
    "ScalarOrSchedule",
    "ScaleState",
    "Schedule",
    "ShouldSkipUpdateFunction",
    "StatefulSchedule",
    "TransformInitFn",
    "TransformUpdateExtraArgsFn",
    "TransformUpdateFn",
    "Updates",
    "init_empty_state",
    "with_extra_args_support",
]


# Other code compares these classes by identity.
AdaptiveGradClipState = AddDecayedWeightsState = ClipByGlobalNormState = EmptyState
ClipState = ScaleState = EmptyState


def init_empty_state(params: Params) -> EmptyState:
    """The `init` of a transformation that keeps no state.

    Args:
      params: anything; it is not read.

    Example:
      >>> import gradx
      >>> gradx.init_empty_state({"w": 1.0})
      EmptyState()
    """
    return EmptyState()


def with_extra_args_support(tx: GradientTransformation) -> GradientTransformationExtraArgs:
    """Makes `update` accept extra arguments, whether the transformation uses them or not.

    Args:
      tx: any pair of `init` and `update`. One that accepts extra arguments already, such as all of
        gradx's, is returned as it is. For any other they are dropped before its `update`.

    Example:
      >>> import gradx
      >>> def twice(updates, state, params=None):
      ...     return 2 * updates, state
      >>> tx = gradx.GradientTransformation(gradx.init_empty_state, twice)
      >>> gradx.with_extra_args_support(tx).update(3.0, gradx.EmptyState(), value=0.1)[0]
      6.0
    """
    if isinstance(tx, GradientTransformationExtraArgs):
        return tx

    def update(
        updates: Updates, state: OptState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Updates, OptState]:
        return tx.update(updates, state, params)

    return GradientTransformationExtraArgs(tx.init, update)
