"""Schedules that Optax does not have: their curves in float64, borders, arithmetic, phases."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradx


def assert_close(made: Any, expected: Any) -> None:
    np.testing.assert_allclose(made, expected, rtol=3e-6, atol=3e-7)


class Row(NamedTuple):
    """A schedule, its curve in float64, and the steps where something happens to it."""

    made: Callable[[], Any]
    exact: Callable[[np.ndarray], Any]
    borders: tuple[int, ...]


def cooled(f: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """Warmed up in 10 steps to 2, and from step 80 to 100 down to 0.5 along `f`."""

    def value(t: np.ndarray) -> Any:
        x = np.clip((t - 80) / 20, 0, 1)
        return np.where(t < 10, 0.1 + 1.9 * t / 10, 0.5 + 1.5 * f(x))

    return value


def wsd(shape: Any) -> Callable[[], Any]:
    return lambda: gradx.wsd_schedule(0.1, 2.0, 10, 100, 20, 0.5, shape)


def triangle(t: np.ndarray, half: int) -> Any:
    return 1 - np.abs(t % (2 * half) / half - 1)


def restarted(t: np.ndarray) -> Any:
    begins, lengths = np.array([0, 10, 25]), np.array([10, 15, 22])  # 10, 15, 22.5 rounded
    i = np.searchsorted(begins, t, side="right") - 1
    x = np.minimum((t - begins[i]) / lengths[i], 1)
    return 0.1 + (2.0 * 0.5**i - 0.1) * (1 + np.cos(np.pi * x)) / 2


ROWS = {
    "linear": Row(wsd("linear"), cooled(lambda x: 1 - x), (10, 80, 100)),
    "cosine": Row(wsd("cosine"), cooled(lambda x: (1 + np.cos(np.pi * x)) / 2), (10, 80, 100)),
    "1-sqrt": Row(wsd("1-sqrt"), cooled(lambda x: 1 - np.sqrt(x)), (10, 80, 100)),
    "square": Row(wsd("square"), cooled(lambda x: 1 - x**2), (10, 80, 100)),
    "power": Row(wsd(1.2), cooled(lambda x: (1 - x) ** 1.2), (10, 80, 100)),
    "no cool-down": Row(
        lambda: gradx.wsd_schedule(0.0, 1.0, 4, 9, 0), lambda t: np.minimum(t / 4, 1), (4, 9)
    ),
    "all cool-down": Row(
        lambda: gradx.wsd_schedule(0.0, 1.0, 0, 9, 9), lambda t: np.maximum(1 - t / 9, 0), (9,)
    ),
    "rex": Row(
        lambda: gradx.rex_schedule(2.0, 40, 0.5),
        lambda t: 0.5 + 1.5 * (lambda x: (1 - x) / (1 - x / 2))(np.minimum(t / 40, 1)),
        (40,),
    ),
    "triangular": Row(
        lambda: gradx.cyclic_schedule(0.1, 2.0, 7), lambda t: 0.1 + 1.9 * triangle(t, 7), (7, 14)
    ),
    "triangular2": Row(
        lambda: gradx.cyclic_schedule(0.1, 2.0, 7, "triangular2"),
        lambda t: 0.1 + 1.9 * triangle(t, 7) / 2 ** (t // 14),
        (7, 14, 28),
    ),
    "exp_range": Row(
        lambda: gradx.cyclic_schedule(0.1, 2.0, 7, "exp_range", 0.99),
        lambda t: 0.1 + 1.9 * triangle(t, 7) * 0.99**t,
        (7, 14, 28),
    ),
    "restarts": Row(
        lambda: gradx.cosine_restarts_schedule(2.0, 10, 3, 0.1, 1.5, 0.5), restarted, (10, 25, 47)
    ),
    "step": Row(
        lambda: gradx.step_schedule(2.0, 10, 0.5), lambda t: 2.0 * 0.5 ** (t // 10), (10, 20)
    ),
    "inverse_sqrt": Row(
        lambda: gradx.inverse_sqrt_schedule(0.1, 2.0, 10),
        lambda t: np.where(t < 10, 0.1 + 1.9 * t / 10, 2.0 * np.sqrt(10 / np.maximum(t, 10))),
        (10,),
    ),
    "inverse power": Row(
        lambda: gradx.inverse_sqrt_schedule(0.0, 2.0, 10, 0.3),
        lambda t: np.where(t < 10, 2.0 * t / 10, 2.0 * (10 / np.maximum(t, 10)) ** 0.3),
        (10,),
    ),
    "product": Row(
        lambda: 0.5 * gradx.linear_schedule(2.0, 0.0, 10) * gradx.rex_schedule(1.0, 20),
        lambda t: (
            np.maximum(1 - t / 10, 0) * (lambda x: (1 - x) / (1 - x / 2))(np.minimum(t / 20, 1))
        ),
        (10, 20),
    ),
    "sum": Row(
        lambda: 0.5 + gradx.linear_schedule(2.0, 0.0, 10) + (lambda count: count * 0.0),
        lambda t: 0.5 + 2.0 * np.maximum(1 - t / 10, 0),
        (10,),
    ),
}
each = pytest.mark.parametrize("name", ROWS)


@each
def test_curves(name: str) -> None:
    """In float32 to rounding, under `jit`, of counts of any type, with exact borders."""
    row = ROWS[name]
    schedule = row.made()
    counts = np.unique([0, 1, 2, *(b + d for b in row.borders for d in (-1, 0, 1, 5)), 45, 200])
    expected = np.broadcast_to(row.exact(counts.astype(np.float64)), counts.shape)
    made = jax.jit(schedule)(jnp.asarray(counts, jnp.int32))
    assert (made.dtype, made.shape, made.weak_type) == (jnp.float32, counts.shape, False)
    assert_close(made, expected.astype(np.float32))
    small = [int(c) for c in counts if c < 128]
    for dtype in (jnp.int8, jnp.uint32, jnp.float32):
        again = schedule(jnp.asarray(small, dtype))
        assert_close(again, made[: len(small)])
    assert_close(schedule(int(counts[-1])), made[-1])


@each
def test_they_read_as_the_code_and_come_out_of_a_config(name: str) -> None:
    if name == "sum":
        return  # it has a function of its own, which no config can name
    schedule = ROWS[name].made()
    assert eval(repr(schedule), dict(vars(gradx))) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    tx = gradx.sgd(schedule)
    assert gradx.from_config(gradx.to_config(tx)) == tx
    with jax.enable_x64(True):
        assert schedule(3).dtype == jnp.float64


@each
def test_values_may_be_traced_and_differentiated(name: str) -> None:
    slope = jax.jit(jax.grad(lambda x: (gradx.product_schedule(ROWS[name].made(), x))(5)))(1.0)
    assert_close(slope, ROWS[name].made()(5))


def test_print_shows_the_phases() -> None:
    text = str(gradx.wsd_schedule(0.0, 1e-3, 100, 1000, 200))
    assert [line.split() for line in text.split("\n")[2:]] == [
        ["0", "to", "100", "0", "0.001"],
        ["100", "to", "800", "0.001", "0.001"],
        ["800", "to", "1000", "0.001", "0"],
        ["from", "1000", "0"],
    ]
    jumps = str(gradx.piecewise_constant_schedule(1.0, {10: 0.5}))
    assert [line.split() for line in jumps.split("\n")[2:]] == [
        ["0", "to", "10", "1", "1"],
        ["from", "10", "0.5"],
    ]
    joined = gradx.join_schedules(
        [gradx.linear_schedule(0.0, 1.0, 5), gradx.cosine_decay_schedule(1.0, 20)], [10]
    )
    assert list(joined.borders) == [0, 5, 10, 30]
    assert list((joined * gradx.step_schedule(1.0, 7)).borders) == [0, 5, 7, 10, 14, 30]
    assert str(gradx.constant_schedule(0.1)).split("\n")[2].split() == ["from", "0", "0.1"]


@pytest.mark.parametrize("n", [np.array(10), np.int64(10), jnp.int32(10), 10.0])
def test_steps_may_be_numbers_of_any_library(n: Any) -> None:
    line = gradx.linear_schedule(0.0, 1.0, n) * 0.5
    both = gradx.join_schedules([gradx.cosine_decay_schedule(1.0, n), line], [20])
    assert (line.borders, both.borders) == ((0, 10), (0, 10, 20, 30))


def test_in_a_line_of_a_log_it_is_its_code() -> None:
    schedule = gradx.rex_schedule(1.0, 10)
    assert f"{schedule}" == repr(schedule) == "rex_schedule(1.0, 10)"
    seen: list[str] = []
    jax.jit(lambda x: (seen.append(str(gradx.rex_schedule(x, 10))), x)[1])(1.0)
    assert seen == ["rex_schedule(<traced float32[]>, 10)"]


def test_a_source_makes_a_product_of_sources() -> None:
    rate = gradx.rex_schedule(1.0, 10) * gradx.tunable(0.5)
    tx = gradx.sgd(rate)
    state = gradx.set_hyperparams(tx.init(jnp.ones(1)), **{"learning_rate.factor1": 0.25})
    assert_close(tx.update(jnp.ones(1), state)[0], [-0.25])


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: gradx.wsd_schedule(0.0, 1.0, 60, 100, 50), "decay_steps is the number of all steps"),
    (lambda: gradx.wsd_schedule(0.0, 1.0, 6, 100, -5), "cooldown_steps must be in"),
    (lambda: gradx.wsd_schedule(0.0, 1.0, 6, 100, 5, shape="cubic"), "shape must be one of"),
    (lambda: gradx.wsd_schedule(0.0, 1.0, 6, 100, 5, shape=-1.0), "shape must be in"),
    (lambda: gradx.wsd_schedule(0.0, float("nan"), 6, 100, 5), "peak_value must be in"),
    (lambda: gradx.rex_schedule(1.0, 0), "decay_steps must be in"),
    (lambda: gradx.cyclic_schedule(0.0, 1.0, 0), "transition_steps must be in"),
    (lambda: gradx.cyclic_schedule(0.0, 1.0, 2.5), "transition_steps must be a whole number"),
    (lambda: gradx.cyclic_schedule(0.0, 1.0, 2, "square"), "mode must be one of"),
    (lambda: gradx.cyclic_schedule(0.0, 1.0, 2, decay_rate=0.9), "decay_rate is for mode='exp_ra"),
    (lambda: gradx.cyclic_schedule(0.0, 1.0, 2, "exp_range", 1.5), "decay_rate must be in"),
    (lambda: gradx.cosine_restarts_schedule(1.0, 4, 0), "cycles must be in"),
    (lambda: gradx.cosine_restarts_schedule(1.0, 4, 2, length_factor=0.5), "length_factor must"),
    (lambda: gradx.cosine_restarts_schedule(1.0, 4, 2000, length_factor=2), "fewer cycles"),
    (lambda: gradx.cyclic_schedule(0.0, 1.0, 2**31), "transition_steps must be in"),
    (lambda: gradx.step_schedule(1.0, 0), "step_size must be in"),
    (lambda: gradx.step_schedule(1.0, 3, -0.1), "decay_rate must be in"),
    (lambda: gradx.inverse_sqrt_schedule(0.0, 1.0, 0), "warmup_steps must be in"),
    (lambda: gradx.inverse_sqrt_schedule(0.0, 1.0, 4, -1.0), "exponent must be in"),
    (lambda: gradx.product_schedule(), "needs at least one schedule or number"),
    (lambda: gradx.rex_schedule(1.0, 4) * "x", r"parts\[1\] must be a schedule or a number"),
    (lambda: gradx.sum_schedule(gradx.tunable(1.0)), r"parts\[0\] .*scaled"),
    (lambda: gradx.rex_schedule(1.0, 4) + float("inf"), r"parts\[1\] must be in"),
]


@pytest.mark.parametrize(("make", "match"), BAD, ids=lambda v: None)
def test_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
