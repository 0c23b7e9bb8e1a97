"""A transformation is Optax's pair of pure functions, plus a description of itself.

The pair is the contract that everything in the ecosystem speaks::

    init(params) -> state
    update(updates, state, params=None, **extra_args) -> (updates, state)

The description is a `Spec`: the factory (the public function) that made it, and the arguments.
`repr`, `==`, `hash`, `describe`, `to_config` and `tunable(tx)` read it. `recorded` puts it there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, Self, TypeAlias, TypeVar

import jax
import optax

from gradx.contract import OptState, with_extra_args_support
from gradx.contract import Params as Params
from gradx.contract import Updates as Updates
from gradx.core.annotations import evaluated
from gradx.core.binding import fit
from gradx.core.calls import by_new_names, checked, take
from gradx.core.calls import inside as inside
from gradx.core.calls import where as where
from gradx.core.docstrings import shown_signature, with_arguments
from gradx.core.initial import begun
from gradx.core.show import foreign_name
from gradx.core.show import show as show
from gradx.core.spec import Described as Described
from gradx.core.spec import Spec as Spec
from gradx.core.spec import inside_out, made_in

__all__ = ["Transform", "recorded", "registered"]


P = ParamSpec("P")
T = TypeVar("T", bound=Described)
F = TypeVar("F", bound=Callable[..., Any])

State: TypeAlias = OptState
with_extra_args = with_extra_args_support
Count: TypeAlias = Any  # an int32 scalar; not typed as one, since tuples have a method `count`


# ---------------------------------------------------------------- the description

REGISTRY: dict[str, Callable[..., Any]] = {}
"""Every recorded factory by name; `from_config` calls nothing else."""

FUNCTIONS: dict[str, Callable[..., Any]] = {}
"""Every registered function by name: masks and schedules that a config may name."""


@checked
def recorded(factory: Callable[P, T]) -> Callable[P, T]:
    """Makes what a factory returns know its call, for `repr`, `==`, pickling and configs.

    Args:
      factory: a function of a module that returns a transformation (Optax's too), a schedule or a
        source. Outside gradx it is registered as ``module:name``, and cannot shadow one of gradx.

    Example:
      >>> import gradx
      >>> @gradx.recorded
      ... def halved(learning_rate: gradx.Hyper) -> gradx.Transform:
      ...     return gradx.chain(gradx.scale(0.5), gradx.sgd(learning_rate))
      >>> halved(0.1)
      halved(0.1)
    """
    signature = evaluated(factory)

    @functools.wraps(factory)
    def make(*args: P.args, **kwargs: P.kwargs) -> T:
        given_names: Any = by_new_names(factory, kwargs)
        with inside(factory.__name__, factory):
            bound = fit(signature, where(), args, given_names)
            taken = take(factory, bound)
            made: Any = factory(*taken.args, **taken.kwargs)
        if isinstance(made, optax.GradientTransformation) and not isinstance(made, Transform):
            made = Transform(*with_extra_args(made))  # a factory around Optax's
        described: T = made.with_spec(Spec(make, given(bound)))
        return described

    make.__doc__ = with_arguments(factory, signature)
    make.__dict__.update(__signature__=shown_signature(factory), __recorded__=factory)
    if "<" not in make.__qualname__:  # what is local to a function cannot be found by name
        REGISTRY[registered_name(make)] = make
    return make


def recorded_class(cls: type[T]) -> type[T]:
    """`recorded` for a class of transformations, whose `__new__` is the factory."""
    signature, new = evaluated(cls), cls.__new__
    cls.__doc__ = with_arguments(cls, signature)

    def make(cls_: type[T], *args: Any, **kwargs: Any) -> T:
        with inside(cls.__name__, cls):
            bound = fit(signature, where(), args, kwargs)
            taken = take(cls, bound)
            made: Any = new(cls_, *taken.args, **taken.kwargs)
        made.spec = Spec(cls, given(bound))
        return made

    cls.__new__ = functools.wraps(new)(make)  # type: ignore[assignment]
    REGISTRY[registered_name(cls)] = cls
    return cls


def given(bound: inspect.BoundArguments) -> tuple[tuple[str, Any], ...]:
    """The arguments of a call that differ from the defaults."""
    parameters = bound.signature.parameters
    return tuple(
        (name, value)
        for name, value in bound.arguments.items()
        if not _is_default(value, parameters[name].default)
    )


def registered(function: F) -> F:
    """Lets configs name a function: your own mask, label function or schedule.

    Args:
      function: a function of a module; it is registered by its name, outside gradx by
        ``module:name``, and returned unchanged. A later function of the same name replaces it.

    Example:
      >>> import gradx
      >>> @gradx.registered
      ... def halving(count):
      ...     return 0.5**count
      >>> gradx.from_config(gradx.to_config(gradx.sgd(halving))) == gradx.sgd(halving)
      True
    """
    if "<" in function.__qualname__:
        raise ValueError(
            f"registered: {show(function)} has no name of its own; register a function of a module."
        )
    FUNCTIONS[registered_name(function)] = function
    return function


def registered_name(factory: Callable[..., Any]) -> str:
    module, name = factory.__module__, factory.__qualname__
    return name if module.split(".")[0] == "gradx" else f"{module}:{name}"


def _is_default(value: Any, default: Any) -> bool:
    if value is default:
        return True
    plain = bool | int | float | str
    return isinstance(value, plain) and type(value) is type(default) and value == default


# ---------------------------------------------------------------- the transformation


class Transform(Described, optax.GradientTransformationExtraArgs):
    """A gradient transformation: Optax's `(init, update)` pair that can describe itself.

    Every gradx factory returns one, and whatever takes an Optax transformation takes it:
    `optax.chain`, `flax.nnx.Optimizer`, `flax.training.train_state.TrainState`.

    Args:
      init: `params -> state`. Parameters may be shapes, `jax.ShapeDtypeStruct` with or without
        a sharding, where the state does not begin with their values.
      update: `(updates, state, params=None, **extra_args) -> (updates, state)`.
      spec: the factory and arguments it was made from, if known.
      stage: the same transformation as work on single leaves, if it is that; combinators fuse
        neighbouring stages into one pass over the tree (see `gradx.lift.stages`).
      parts: `(params, state) -> parts`, the transformations it is made of, for `describe` and
        `set_hyperparams`, which knows no parameters and gives a tree without leaves.
      remake: `numbers -> transformation`, where the state holds the numbers, as with
        `inject_hyperparams`. `set_hyperparams` calls it to check new numbers.

    Two transforms made by the same factory from equal arguments are equal and hash alike, so a
    transform can be a static argument of `jax.jit`. To JAX it is a tree without leaves, so it can
    also be an ordinary argument, or a part of one (`jax.jit`, `scan`, `vmap`, `eqx.filter_jit`);
    equal ones share a trace. One whose arguments have no hash (arrays with axes) equals only
    itself. Functions among the arguments are compared by identity.

    Example:
      >>> import gradx
      >>> gradx.chain(gradx.clip_by_global_norm(1.0), gradx.adam(1e-3, b2=0.95))
      chain(clip_by_global_norm(1.0), adam(0.001, b2=0.95))
      >>> gradx.sgd(0.1) == gradx.sgd(learning_rate=0.1)
      True
    """

    stage: Any
    parts: Callable[[Params, State], list[Part]] | None
    remake: Callable[[Mapping[str, Any]], Any] | None
    body: Transform | None = None  # as the factory made it, with the spec of its own, if any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_static(cls)  # subclasses do not inherit it

    def __new__(
        cls,
        init: Callable[[Params], State],
        update: Callable[..., tuple[Updates, State]],
        *,
        spec: Spec | None = None,
        stage: Any = None,
        parts: Callable[[Params, State], list[Part]] | None = None,
        remake: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> Transform:
        who = where()

        @functools.wraps(init)
        def begin(params: Params) -> State:
            return begun(init, params, who, parts)

        self: Transform = super().__new__(cls, begin, update)
        self.spec, self.stage, self.parts, self.remake = spec, stage, parts, remake
        return self

    def with_spec(self, spec: Spec) -> Self:
        made: Self = tuple.__new__(type(self), self)
        made.__dict__.update(self.__dict__, spec=spec, body=self)
        return made

    def __repr__(self) -> str:
        if self.spec is not None:
            return repr(self.spec)
        rule = getattr(self.stage, "update", None)
        return foreign_name(self) if rule is None else f"leafwise({show(rule)})"


# JAX takes a named tuple for a tree of two functions, and `jax.tree.map` would rebuild it without
# its spec and stage.
jax.tree_util.register_static(Transform)


@dataclass(frozen=True)
class Part:
    """One of the transformations that a combinator is made of, with what it acts on, and why."""

    label: str
    transform: optax.GradientTransformation
    params: Params
    state: State
    why: Mapping[str, str] = field(default_factory=dict)  # path to reason, where there is a choice


def within(tx: Any) -> list[Transform]:
    """The transformation, if it is gradx's, and then those that it was made of, as it tells."""

    def parts(made: Any) -> Iterator[Any]:
        spec, body = getattr(made, "spec", None), getattr(made, "body", None)
        yield from made_in(() if spec is None else spec.arguments)
        if body is not None:
            yield body

    return [made for made in inside_out(tx, parts) if isinstance(made, Transform)][::-1]


def is_transform(value: Any) -> bool:
    """Whether it has the contract's two functions, whatever its class."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))
