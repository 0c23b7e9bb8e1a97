"""Changes gradients before an optimizer sees them: centres them, removes NaNs, adds noise."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.core import Count, Params, State, Transform, Updates
from gradx.core import trees as gtree
from gradx.core.calls import renamed, warn
from gradx.core.meaning import Number
from gradx.core.ranges import as_float
from gradx.core.updates import safe_increment
from gradx.lift.leafwise import leafwise
from gradx.lift.passes import check_array, widen
from gradx.lift.stages import LeafState, Numbers
from gradx.lift.states import check_state
from gradx.numbers.sources import Array

__all__ = ["AddNoiseState", "ZeroNansState", "add_noise", "centralize", "zero_nans"]


@core.recorded
def centralize() -> Transform:
    r"""Gradient centralization: subtracts its mean from each slice along the first axis.

    .. math:: u_j \leftarrow u_j - \mathrm{mean}(u_j), \qquad u_j = u[j, \ldots]

    Leaves of fewer than two axes pass as they are. The first axis is the output axis in PyTorch's
    layout; a Flax kernel is (in, out), and is centred over its outputs, as by Optax.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.centralize()
      >>> tx.update(jnp.array([[1.0, 3.0], [5.0, 5.0]]), tx.init(jnp.ones((2, 2))))[0]
      Array([[-1.,  1.],
             [ 0.,  0.]], dtype=float32)

    Reference: Yong et al., *Gradient Centralization*, https://arxiv.org/abs/2004.01461.
    """
    return leafwise(_centralize)


def _centralize(g: Array, s: LeafState, p: None, h: Numbers) -> tuple[Array, LeafState]:
    if g.ndim < 2 or not g.size:
        return g, s
    return g - jnp.mean(g, axis=tuple(range(1, g.ndim)), keepdims=True), s


class ZeroNansState(NamedTuple):
    """The state of `zero_nans`.

    Attributes:
      found_nan: for each leaf, whether the last update had a NaN there, bool ().
    """

    found_nan: Updates


@core.recorded
def zero_nans() -> Transform:
    r"""Replaces NaNs by zero, and says in the state where there were any.

    .. math:: u \leftarrow 0 \text{ where } u \text{ is NaN}

    Infinities stay.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.zero_nans()
      >>> tx.update(jnp.array([jnp.nan, 1.0]), tx.init(jnp.ones(2)))
      (Array([0., 1.], dtype=float32), ZeroNansState(found_nan=Array(True, dtype=bool)))
    """
    return leafwise(_zero_nans, init={"found_nan": _none_found}, state=ZeroNansState)


def _none_found(p: Array) -> Array:
    return jnp.zeros((), bool)


def _zero_nans(g: Array, s: ZeroNansState, p: None, h: Numbers) -> tuple[Array, ZeroNansState]:
    nan = jnp.isnan(g)
    return jnp.where(nan, 0.0, g), s._replace(found_nan=jnp.any(nan))


class AddNoiseState(NamedTuple):
    """The state of `add_noise`.

    Attributes:
      count: the updates done so far, int32 ().
      rng_key: the random key of the next update, raw (2,) or, if a typed one was given, ().
    """

    count: Count
    rng_key: Array


@core.recorded
@renamed(seed="key")
def add_noise(
    eta: Annotated[float, Number("[0, inf)", r"\eta")],
    gamma: Annotated[float, Number("[0, inf)", r"\gamma")],
    key: Array | int | None = None,
) -> Transform:
    r"""Adds Gaussian noise whose variance falls with the step.

    .. math:: u \leftarrow u + \mathcal N(0, \sigma_t^2), \qquad
              \sigma_t^2 = \eta / t^\gamma, \qquad t = 1, 2, \ldots

    Args:
      eta: the variance at the first update.
      gamma: how fast the variance falls.
      key: A seed gives a raw key in the state, which is saved like any other array; a typed key
        (`jax.random.key`) stays typed. By default the seed is 0, with a warning, since two runs
        that should differ would have the same noise.

    Raises:
      ValueError: `key` is neither a key nor a seed.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.add_noise(0.01, 0.55, key=0)
      >>> state = tx.init(jnp.ones(3))
      >>> updates, state = tx.update(jnp.zeros(3), state)
      >>> bool(jnp.all(jnp.abs(updates) < 0.5)), state.count
      (True, Array(1, dtype=int32))

    Reference: Neelakantan et al., *Adding gradient noise improves learning for very deep
    networks*, https://arxiv.org/abs/1511.06807.
    """
    where = core.where()
    start = key_or_zero(key)

    def init(params: Params) -> AddNoiseState:
        return AddNoiseState(jnp.zeros((), jnp.int32), as_key(start))

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, AddNoiseState]:
        check_state(state, AddNoiseState, where)
        count = safe_increment(state.count)
        deviation = jnp.sqrt(eta / as_float(count) ** gamma)
        rng_key, now = jax.random.split(state.rng_key)
        flat = gtree.flatten(updates)
        for i, g in enumerate(flat.values):
            if g is not None:
                check_array(g, flat, i, where, "update")
        keys = iter(jax.random.split(now, len(jax.tree.leaves(updates))))
        noisy = [
            None if g is None else _noisy(jnp.asarray(gtree.as_number(g)), deviation, next(keys))
            for g in flat.values
        ]
        return flat.unflatten(noisy), AddNoiseState(count, rng_key)

    return Transform(init, update)


def key_or_zero(key: Any) -> Any:
    """The key that a factory was given; if none was, the seed 0, with Optax's warning."""
    if key is None:
        warn(f"{core.where()}: without a key the noise is that of key=0, the same in every run.")
        return 0
    check_key("key", key)
    return key


def check_key(name: str, start: Any) -> None:
    """Raises ValueError unless this is a random key, typed or raw, or the seed of one."""
    dtype, shape = getattr(start, "dtype", None), jnp.shape(start)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    raw = dtype == jnp.uint32 and len(shape) == 1
    integer = isinstance(start, int) if dtype is None else jnp.issubdtype(dtype, jnp.integer)
    seed = integer and shape == () and not isinstance(start, bool)
    if not (raw or seed or (typed and shape == ())):
        raise ValueError(
            f"{core.where()}: {name} must be a random key (jax.random.key) or an integer, got "
            f"{core.show(start)}."
        )


def as_key(start: Array | int) -> Array:
    """A copy of a key, typed or raw, since a donated state must not free it; or the key of a seed.

    A seed gives a raw key, so that NumPy, Flax and Equinox can save a state with it.
    """
    typed = jnp.issubdtype(getattr(start, "dtype", int), jax.dtypes.prng_key)
    if typed or jnp.ndim(start) == 1:  # the raw keys of jax.random.PRNGKey; a seed is a scalar
        return jnp.copy(start)
    return jax.random.PRNGKey(start)


@gtree.mixing
def _noisy(g: Array, deviation: Array, key: Array) -> Array:
    wide = widen(g)
    deviation = deviation.astype(wide.real.dtype)
    noise = jax.random.normal(key, g.shape, wide.dtype)
    return (wide + deviation * noise).astype(g.dtype)
