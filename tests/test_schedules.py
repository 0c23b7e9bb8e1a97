"""Schedules: Optax's values, the borders, what is refused, and the description."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradx import core
from gradx.numbers import hyper, paths, sources
from gradx.schedules import curves, piecewise, sequences

LAST = 2**31 - 1
NAMES = {
    name: getattr(module, name)
    for module in (curves, piecewise, sequences)
    for name in vars(module)
    if name in core.REGISTRY and name in vars(optax.schedules)
}


class Row(NamedTuple):
    """A schedule that Optax has, and the steps where something happens to it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    borders: tuple[int, ...]

    @property
    def ours(self) -> curves.ScheduleFn:
        return NAMES[self.name](*self.args, **self.kwargs)

    @property
    def theirs(self) -> Callable[[Any], Any]:
        return getattr(optax.schedules, self.name)(*self.args, **self.kwargs)

    @property
    def counts(self) -> np.ndarray:
        near = {b + d for b in self.borders for d in (-1, 0, 1)}
        far = {0, 1, 2, 10 * max(self.borders), LAST}
        middle = {b // 2 for b in self.borders} | {b // 3 for b in self.borders}
        return np.array(sorted(c for c in near | far | middle if c >= 0), np.int32)


def row(name: str, borders: tuple[int, ...], *args: Any, **kwargs: Any) -> Row:
    return Row(name, args, kwargs, borders)


WAVE = curves.cosine_decay_schedule(1.0, 9)
LINE = curves.linear_schedule(0.3, 0.5, 10)
CYCLE = {"init_value": 0.1, "peak_value": 1.0, "warmup_steps": 3, "decay_steps": 10}
ROWS = [
    row("constant_schedule", (10,), 0.3),
    row("linear_schedule", (100,), 1.0, 0.01, 100),
    row("linear_schedule", (5, 105), 0, 1e-3, transition_steps=100, transition_begin=5),
    row("polynomial_schedule", (100,), 1.0, 0.01, 2, 100),
    row("polynomial_schedule", (7, 57), -1.0, 2.0, 1.5, 50, transition_begin=7),
    row("polynomial_schedule", (10**6,), 1e-3, 1e-5, 3.0, 1e6),
    row("exponential_decay", (10, 50), 0.1, 10, 0.5),
    row("exponential_decay", (3, 13, 23), 0.1, 10, 0.9, 3, True),
    row("exponential_decay", (10, 40), 0.1, 10, 0.5, end_value=0.01),
    row("exponential_decay", (10, 20), 0.1, 10, 2.0, end_value=0.35, staircase=True),
    row("cosine_decay_schedule", (100,), 1.0, 100),
    row("cosine_decay_schedule", (37,), 3e-4, 37, alpha=0.1, exponent=2.0),
    row("cosine_decay_schedule", (1,), 3e-4, 1, 2.0, 1),
    row("piecewise_constant_schedule", (10,), 0.5),
    row("piecewise_constant_schedule", (10, 20, 40), 0.5, {20: 0.5, 10: 0.1, 40: 3.0}),
    row("piecewise_constant_schedule", (5,), 0.5, {0: 0.5, 5: 0.0}),
    row("piecewise_interpolate_schedule", (10,), "linear", 0.5),
    row("piecewise_interpolate_schedule", (10, 30), "linear", 0.5, {30: 2.0, 10: 0.1}),
    row("piecewise_interpolate_schedule", (10, 30), "cosine", 0.5, {10: 0.1, 30: 2.0}),
    row("piecewise_interpolate_schedule", (10,), "cosine", 0.5, {0: 3.0, 10: 0.1}),
    row("linear_onecycle_schedule", (30, 85, 100), 100, 1.0),
    row("linear_onecycle_schedule", (0, 9, 20), 20, 2.0, 0.0, 0.49, 10.0, final_div_factor=100.0),
    row("cosine_onecycle_schedule", (30, 100), 100, 1.0),
    row("cosine_onecycle_schedule", (25, 50), 50, 2e-3, 0.5, 10.0, final_div_factor=100.0),
    row("warmup_constant_schedule", (10,), 0.0, 1e-3, 10),
    row("warmup_cosine_decay_schedule", (100, 1000), 0.0, 1e-3, 100, 1000),
    row("warmup_cosine_decay_schedule", (10, 50), 0.1, 1.0, 10, 50, end_value=0.2, exponent=1.5),
    row("warmup_cosine_decay_schedule", (50,), 0.1, 1.0, 0, 50, 0.2),
    row("warmup_exponential_decay_schedule", (10, 30), 0.0, 1.0, 10, 20, 0.5),
    row("warmup_exponential_decay_schedule", (10, 15, 35), 0.0, 1.0, 10, 20, 0.5, 5, True, 0.3),
    row("warmup_exponential_decay_schedule", (20,), 0.0, 1.0, 0, 20, 0.5),
    row("sgdr_schedule", (3, 10), [CYCLE]),
    row("sgdr_schedule", (3, 10, 13, 20, 40), [CYCLE, CYCLE, {**CYCLE, "decay_steps": 20}]),
    row("join_schedules", (10,), [curves.linear_schedule(1.0, 0.5, 10)], ()),
    row("join_schedules", (0, 4, 9), [WAVE, LINE, WAVE, LINE, WAVE], (0, 4, 4.0, np.int64(9))),
]
IDS = [f"{r.name}-{i}" for i, r in enumerate(ROWS)]
each_row = pytest.mark.parametrize("row", ROWS, ids=IDS)


def close(ours: Any, theirs: Any) -> None:
    """Equal but for rounding: relative 1e-6, or a few float32 ulps of the largest value."""
    scale = np.max(np.abs(theirs), initial=1e-30, where=np.isfinite(theirs))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=float(scale) * 2e-7)


def test_every_schedule_of_optax_is_here_with_its_signature() -> None:
    from inspect import signature

    others = {"inject_hyperparams", "inject_stateful_hyperparams"}
    made = {n for n, f in vars(optax.schedules).items() if callable(f) and n[0].islower()} - others
    assert made == set(NAMES) == {r.name for r in ROWS}
    for name, factory in NAMES.items():
        ours, theirs = signature(factory).parameters, signature(getattr(optax, name)).parameters
        assert [(p.name, p.default, p.kind) for p in ours.values()] == [
            (p.name, p.default, p.kind) for p in theirs.values()
        ]


# ---------------------------------------------------------------- values


@each_row
def test_optax_values(row: Row) -> None:
    ours = row.ours
    small = jnp.array([0, 3, 10, 13, 100, 127])

    @jax.jit
    def everything() -> Any:
        counts = jnp.asarray(row.counts)
        types = [small.astype(t) for t in (jnp.int32, jnp.int8, jnp.uint32, jnp.float32)]
        huge = [LAST, jnp.asarray(2**32 - 1, jnp.uint32), 10**10, np.int64(10**10)]
        return (
            jax.vmap(row.theirs)(counts),
            jax.vmap(ours)(counts),
            [ours(t) for t in types],
            [ours(h) for h in huge],
            [(ours(c), row.theirs(c)) for c in (0, *row.borders)],
        )

    theirs, mapped, small_made, huge_made, pairs = everything()
    close(mapped, theirs)
    assert mapped.dtype == jnp.float32
    assert not mapped.weak_type
    for made in small_made[1:]:
        close(made, small_made[0])
    close(huge_made, np.full(4, huge_made[0]))
    close(*np.array(pairs, np.float32).T)


@each_row
def test_one_count_makes_one_float32(row: Row) -> None:
    for dtype in (jnp.int32, jnp.uint8, jnp.float32, jnp.bfloat16):
        made = jax.eval_shape(row.ours, jax.ShapeDtypeStruct((), dtype))
        assert (made.shape, made.dtype) == ((), jnp.float32)
    assert jax.eval_shape(row.ours, jax.ShapeDtypeStruct((2, 3), jnp.int32)).shape == (2, 3)
    with jax.enable_x64(True):
        made = jax.eval_shape(row.ours, jax.ShapeDtypeStruct((), jnp.int32))
        assert made.dtype == jnp.float64


def test_steps_beyond_int32() -> None:
    far = 4 * (LAST + 1)
    half = np.float32(0.5)
    assert curves.linear_schedule(1.0, 0.0, far)(2 * (LAST + 1)) == half
    for count in (LAST, jnp.asarray(LAST, jnp.int32)):
        close(curves.linear_schedule(1.0, 0.0, far)(count), 0.75)
        close(curves.linear_schedule(1.0, 0.0, 10, far)(count), 1.0)
        close(curves.cosine_decay_schedule(1.0, far)(count), 0.5 * (1 + np.cos(np.pi / 4)))
        close(curves.exponential_decay(1.0, far, 0.0625)(count), 0.5)
        close(piecewise.piecewise_constant_schedule(1.0, {5: 0.5, far: 0.1})(count), 0.5)
        close(
            piecewise.piecewise_interpolate_schedule("linear", 1.0, {far: 0.0, 2 * far: 5.0})(
                count
            ),
            0.75,
        )
        close(sequences.warmup_cosine_decay_schedule(0.0, 1.0, far, 2 * far)(count), 0.25)


def test_numbers_may_be_traced() -> None:
    def at(x: Any, count: Any) -> Any:
        made = [
            curves.constant_schedule(x),
            curves.polynomial_schedule(x, 2 * x, 1 + x, 10),
            curves.cosine_decay_schedule(x, 10, x, 1 + x),
            curves.exponential_decay(x, 10, x, end_value=x / 2),
            curves.exponential_decay(x, 10, 2 + x, end_value=x * 2),
            piecewise.piecewise_constant_schedule(x, {5: 0.5}),
            piecewise.cosine_onecycle_schedule(10, x),
            sequences.warmup_cosine_decay_schedule(0.0, x, 3, 10, x / 2),
        ]
        return jnp.stack([schedule(count) for schedule in made])

    counts = jnp.array([0, 3, 9, 100])
    every = jax.vmap(at, (None, 0))
    close(jax.jit(every)(0.5, counts), jax.jit(lambda c: every(0.5, c))(counts))
    assert jax.eval_shape(at, jnp.zeros((), jnp.bfloat16), 3).dtype == jnp.float32
    slopes = jax.jit(jax.vmap(jax.jacfwd(at), (None, 0)))(0.5, counts)
    assert np.all(np.isfinite(slopes))
    close(slopes[0], np.array([1, 1, 1, 1, 1, 1, 0.04, 0]))


def test_join_boundaries_may_be_traced() -> None:
    steps = jax.vmap(lambda b: sequences.join_schedules([jnp.ones_like, jnp.zeros_like], [b])(5))
    np.testing.assert_array_equal(steps(jnp.array([4, 5, 6])), [0, 0, 1])


def test_borders_are_exact_under_jit() -> None:
    # On CPU, 41 / 41 and 61 / 61 are less than 1 in a jitted program.
    for n in (1, 41, 47, 61, 83, 1000):
        stairs = curves.exponential_decay(1.0, n, 0.5, staircase=True)
        line, root = (curves.polynomial_schedule(1.0, 0.0, p, n) for p in (1, 0.5))
        wave = curves.cosine_decay_schedule(1.0, n, exponent=0.5)
        made = jax.jit(lambda c: [f(c) for f in (stairs, line, root, wave)])  # noqa: B023
        assert [float(v) for v in made(0)] == [1.0, 1.0, 1.0, 1.0]
        assert [float(v) for v in made(n)] == [0.5, 0.0, 0.0, 0.0]
        assert float(made(n - 1)[0]) == 1.0


def test_joined_schedules_may_be_any_functions() -> None:
    parts = [lambda count: 2, np.sqrt, lambda count: 0.5 if count < 3 else 0.25]
    schedule = sequences.join_schedules(parts, np.array([4, 12]))
    assert [float(schedule(c)) for c in (0, 4, 8, 12, np.int32(15))] == [2.0, 0.0, 2.0, 0.5, 0.25]


def test_joined_schedules_never_see_a_negative_count() -> None:
    seen: list[int] = []
    schedule = sequences.join_schedules([float, lambda c: seen.append(c) or 1 / (c + 1)], [10])
    assert [float(schedule(c)) for c in (3, 10, 11)] == [3.0, 1.0, 0.5]
    assert seen == [0, 0, 1]


def test_where_we_differ_from_optax() -> None:
    # No warmup means the peak, as in the other warmups; Optax stays at init_value.
    assert float(optax.warmup_constant_schedule(0.0, 1.0, 0)(5)) == 0.0
    assert [float(sequences.warmup_constant_schedule(0.0, 1.0, 0)(c)) for c in (0, 5)] == [1.0, 1.0]
    # One-cycle phases of no steps are skipped, and do not lose the other phases' scales.
    close(optax.linear_onecycle_schedule(1, 1.0)(0), 0.04**2)
    close([piecewise.linear_onecycle_schedule(1, 1.0)(c) for c in (0, 1)], np.array([0.04, 4e-6]))
    close(
        [piecewise.cosine_onecycle_schedule(9, 1.0, 1.0)(c) for c in (0, 9)], np.array([0.04, 4e-6])
    )


# Numbers that Optax takes with a meaning, whoever wanted them: the arguments, and what is said.
EDGES: list[tuple[str, tuple[Any, ...], dict[str, Any], str | None]] = [
    ("linear_schedule", (1.0, 0.0, 0), {}, "transition_steps is 0, .* constant at init_value"),
    ("linear_schedule", (1.0, 0.0, 4, -3), {}, "transition_begin is -3, which counts as 0"),
    ("linear_schedule", (1.0, 0.0, 4.5), {}, None),
    ("polynomial_schedule", (1.0, 0.0, 2, -3), {}, "transition_steps is -3"),
    ("polynomial_schedule", (1.0, 0.0, 0, 4), {}, None),
    ("cosine_decay_schedule", (1.0, 4.5), {"exponent": 0.0}, None),
    ("exponential_decay", (1.0, 0, 0.5), {}, "transition_steps is 0"),
    ("exponential_decay", (1.0, 2, 0.0), {"end_value": 2.0}, "decay_rate is 0"),
    ("exponential_decay", (1.0, 2, 0.5, -2), {}, "transition_begin is -2"),
    ("exponential_decay", (1.0, 2.5, 0.5, 0.5, True), {}, None),
    ("exponential_decay", (1.0, 2, 0.5), {"end_value": 2.0}, "init_value 1.0 is beyond end_value"),
    ("exponential_decay", (1.0, 2, 2.0), {"end_value": 0.5}, "constant at end_value"),
    ("piecewise_constant_schedule", (1.0, {-3: 0.5, 2.5: 0.1}), {}, None),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {-3: 0.5, 4.5: 0.1}), {}, None),
    ("warmup_cosine_decay_schedule", (0.5, 1.0, 2.5, 7.5), {}, None),
    ("warmup_cosine_decay_schedule", (0.5, 0.0, 2, 7, 0.1), {}, "end_value 0.1 is ignored"),
    ("warmup_cosine_decay_schedule", (0.5, 0.0, 2, 7), {}, None),
    ("warmup_exponential_decay_schedule", (0.0, 1.0, 2, 2, 0.0), {}, "constant at peak_value"),
    ("warmup_exponential_decay_schedule", (0.0, 1.0, 2, 2, 0.5, 0, False, 2.0), {}, "beyond"),
    ("join_schedules", ([jnp.zeros_like, jnp.sqrt, lambda c: -c], [-2, 3.5]), {}, None),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "told"), EDGES, ids=lambda v: None)
def test_edges_mean_what_they_mean_in_optax(
    name: str, args: Any, kwargs: Any, told: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    """And what makes a schedule constant says so, to the line that made it."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        ours = NAMES[name](*args, **kwargs)
    theirs = getattr(optax, name)(*args, **kwargs)
    counts = np.arange(9, dtype=np.int32)
    with jax.disable_jit():
        close(ours(counts), np.stack([np.asarray(theirs(count)) for count in counts]))
    said = [str(w.message) for w in recwarn if w.filename == __file__]
    assert [bool(re.search(f"^{name}: .*{told}", s)) for s in said] == [True] * (told is not None)


def test_steps_may_come_from_a_generator() -> None:
    cycles_of = sequences.sgdr_schedule({**CYCLE, "decay_steps": n} for n in (10, 20))
    assert cycles_of == sequences.sgdr_schedule([{**CYCLE, "decay_steps": n} for n in (10, 20)])


# ---------------------------------------------------------------- digits

ENDS = [(0.0, 1e-3), (1e-3, 0.0), (1e-5, 1e-3), (0.3, 0.1), (0.7, 0.7)]
LENGTHS = (10, 41, 1000, 100_000)


def weights(counts: Any, length: int, kind: str, power: int = 1) -> Any:
    """How much of the first value is left, and how much of the last one there, in float64."""
    done = np.minimum(counts / length, 1)
    shares = np.stack([1 - done, done])
    left, done = shares if kind == "line" else np.sin(np.pi / 2 * shares) ** 2
    with np.errstate(divide="ignore"):
        return left**power, -np.expm1(power * np.log1p(-done))


def units(made: Any, exact: Any) -> Any:
    """Errors in units of the last digit of float32."""
    return np.abs(made - exact) / np.spacing(np.abs(exact).astype(np.float32))


CURVES = [("line", 1, 3), ("line", 2, 6), ("wave", 1, 7)]


@pytest.mark.parametrize(("kind", "power", "most"), CURVES)
def test_curves_have_all_digits_from_one_end_to_the_other(kind: str, power: int, most: int) -> None:
    """A warmup from 0 in its first steps, too, and a decay to 0 in its last ones."""
    for length in LENGTHS:
        counts = np.unique(np.linspace(0, length + 2, 1000).astype(np.int32))
        left, done = weights(counts, length, kind, power)

        @jax.jit
        def every(counts: Any, init: Any, end: Any) -> Any:
            if kind == "line":
                return curves.ramp(init, end, power, length)(counts)  # noqa: B023
            return curves.cosine(init, end, length, power)(counts)  # noqa: B023

        for init, end in np.array(ENDS, np.float32):
            exact = np.where(done < left, init + (end - init) * done, end + (init - end) * left)
            assert units(every(counts, init, end), exact).max() < most, (length, init, end)


def test_public_schedules_have_all_digits() -> None:
    counts = np.arange(1002)
    (_, rise), (fall, _) = (
        1e-3 * np.array(weights(counts, 1000, kind)) for kind in ("line", "wave")
    )
    rows = {
        curves.linear_schedule(0.0, 1e-3, 1000): rise,
        curves.polynomial_schedule(0.0, 1e-3, 1.0, 1000): rise,
        curves.cosine_decay_schedule(1e-3, 1000): fall,
        sequences.warmup_constant_schedule(0.0, 1e-3, 1000): rise,
        sequences.warmup_cosine_decay_schedule(0.0, 1e-3, 1000, 5000): rise,
        piecewise.piecewise_interpolate_schedule("linear", 1e-3, {1000: 0.0}): 1e-3 - rise,
        piecewise.piecewise_interpolate_schedule("cosine", 1e-3, {1000: 0.0}): fall,
    }
    for schedule, exact in rows.items():
        made = np.asarray(schedule(jnp.asarray(counts)))[:1001]
        assert units(made, exact[:1001]).max() < 7, schedule
    almost = piecewise.linear_onecycle_schedule(100_000, 1.0)(99_999)
    assert units(np.asarray(almost), np.asarray(4e-6 + (0.04 - 4e-6) / 15_000)) < 4


# ---------------------------------------------------------------- borders, by property

numbers = st.floats(-10, 10, width=32).map(lambda x: round(x, 3))
lengths = st.integers(1, 5000)
quick = settings(max_examples=20, deadline=None)


def values(schedule: Any, first: int, last: int) -> np.ndarray:
    """17 counts, always, so that nothing is compiled twice."""
    return np.asarray(schedule(jnp.asarray(np.linspace(first, last, 17).astype(np.int32))))


def near(a: Any, b: Any, scale: float = 10.0) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=scale * 1e-6)


@quick
@given(numbers, numbers, st.floats(0.25, 4), lengths, st.integers(0, 500))
def test_polynomial_goes_from_one_end_to_the_other(
    init: float, end: float, power: float, length: int, begin: int
) -> None:
    schedule = curves.polynomial_schedule(init, end, power, length, begin)
    near(values(schedule, 0, begin), init)
    near(values(schedule, begin + length, LAST), end)
    assert np.all(np.diff(values(schedule, 0, begin + length)) * np.sign(end - init) >= -1e-5)


@quick
@given(numbers, numbers.filter(bool), st.integers(0, 500), lengths, numbers)
def test_warmup_meets_the_decay_at_the_peak(
    init: float, peak: float, warmup: int, length: int, end: float
) -> None:
    schedule = sequences.warmup_cosine_decay_schedule(init, peak, warmup, warmup + length, end)
    near(schedule(0), init if warmup else peak)
    near(schedule(warmup), peak)
    near(values(schedule, warmup + length, LAST), end)
    rise, fall = values(schedule, 0, warmup), values(schedule, warmup, warmup + length)
    assert np.all(np.diff(rise) * np.sign(peak - init) >= -1e-5)
    assert np.all(np.diff(fall) * np.sign(end - peak) >= -1e-5)
    assert (
        abs(float(schedule(max(warmup - 1, 0))) - peak) <= abs(peak - init) / max(warmup, 1) + 1e-4
    )


@quick
@given(st.floats(0.01, 10), st.floats(0.1, 0.99), lengths, st.integers(0, 500), st.booleans())
def test_exponential_is_multiplied_by_the_rate_once_a_period(
    init: float, rate: float, length: int, begin: int, staircase: bool
) -> None:
    schedule = curves.exponential_decay(init, length, rate, begin, staircase, init / 4)
    near(values(schedule, 0, begin), init)
    near(schedule(begin + length), max(init * rate, init / 4))
    near(schedule(begin + 2 * length), max(init * rate**2, init / 4))
    assert np.all(np.diff(values(schedule, 0, begin + 3 * length)) <= 1e-6)
    if staircase:
        near(schedule(begin + length - 1), init)


@quick
@given(
    numbers,
    st.dictionaries(st.integers(1, 300), st.floats(0, 2), min_size=3, max_size=3),
    st.sampled_from(["linear", "cosine"]),
)
def test_interpolation_goes_through_the_points_of_the_stairs(
    init: float, scales: dict[int, float], kind: str
) -> None:
    line = piecewise.piecewise_interpolate_schedule(kind, init, scales)
    stairs = piecewise.piecewise_constant_schedule(init, scales)
    product = init
    for boundary in sorted(scales):
        near(stairs(boundary - 1), product)
        product *= scales[boundary]
        near([line(boundary), stairs(boundary)], product, 80)
    near(values(line, max(scales), LAST), product, 80)
    inside = values(line, 0, LAST)
    bounds = [float(stairs(b)) for b in (0, *scales)]
    assert np.all((inside >= min(bounds) - 1e-4) & (inside <= max(bounds) + 1e-4))


@quick
@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1), st.floats(1, 50), st.floats(1, 1e4))
def test_onecycle_starts_peaks_and_ends(
    total: int, a: float, b: float, div: float, final: float
) -> None:
    up, down = sorted((a, b))
    lines = piecewise.linear_onecycle_schedule(total, 1.0, up, down, div, final)
    waves = piecewise.cosine_onecycle_schedule(total, 1.0, up, div, final)
    top, back = int(up * total), int(down * total)
    for schedule, falls in ((lines, back), (waves, total)):
        if top > 0:
            near(schedule(0), 1 / div)
        if falls > top:
            near(schedule(top), 1.0)
        near(values(schedule, total, LAST), 1 / div / final)
    if total > back:
        near(lines(back), 1 / div)


@quick
@given(st.lists(st.integers(2, 50), min_size=2, max_size=4))
def test_sgdr_restarts_each_cycle(lengths: list[int]) -> None:
    cycle = {"init_value": 0.5, "peak_value": 1.0, "warmup_steps": 1, "end_value": 0.25}
    schedule = sequences.sgdr_schedule([{**cycle, "decay_steps": n} for n in lengths])
    begin = 0
    for n in lengths:
        near([schedule(begin), schedule(begin + 1)], [0.5, 1.0])
        begin += n
    near(values(schedule, begin, LAST), 0.25)


# ---------------------------------------------------------------- the description


@each_row
def test_repr_is_the_code_that_makes_it(row: Row) -> None:
    ours = row.ours
    again = eval(repr(ours), dict(NAMES))
    assert again == ours
    assert hash(again) == hash(ours)
    assert again is not ours
    assert ours.spec is not None
    assert ours.spec.call() == ours
    assert core.REGISTRY[row.name] is NAMES[row.name]
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert float(again(3)) == float(ours(3))


def test_half_lives_grow_along_a_straight_line() -> None:
    with jax.enable_x64(True):
        schedule = curves.half_life_schedule(0.9, 0.9999, 1000, 10)
        values = np.asarray(schedule(np.array([0, 10, 260, 510, 1010, 5000])))
        half_lives = np.log(0.5) / np.log(values)
        first, last = np.log(0.5) / np.log([0.9, 0.9999])
        share = np.array([0, 0, 0.25, 0.5, 1, 1])
        np.testing.assert_allclose(half_lives, first + share * (last - first), rtol=1e-9)
    assert float(curves.half_life_schedule(0.9, 0.9999, 10)(10)) == np.float32(0.9999)
    with pytest.raises(ValueError, match=r"half_life_schedule: end_value must be in \(0, 1\)"):
        curves.half_life_schedule(0.9, 1.0, 10)


def test_repr_reads_well() -> None:
    warmup = sequences.warmup_cosine_decay_schedule
    made = warmup(0.0, 1e-3, 100, decay_steps=1000, exponent=1.0, end_value=1e-5)
    assert repr(made) == "warmup_cosine_decay_schedule(0.0, 0.001, 100, 1000, end_value=1e-05)"
    both = sequences.join_schedules([made, curves.constant_schedule(1.0)], [5])
    assert repr(both) == f"join_schedules([{made!r}, constant_schedule(1.0)], [5])"
    assert eval(repr(both), dict(NAMES)) == both
    assert made != warmup(0.0, 1e-3, 100, 1000)
    assert made != "a string"
    bare = curves.ScheduleFn(abs)
    assert (repr(bare), bare == bare, bare == curves.ScheduleFn(abs)) == ("abs", True, False)
    assert len({bare, made, both}) == 3
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(bare)


def test_rules_take_it_as_a_schedule() -> None:
    schedule = curves.linear_schedule(1.0, 0.0, 10)
    source = hyper.as_source(schedule, "learning_rate", "[0, inf)", "sgd")
    assert isinstance(source, sources.Scheduled)
    assert source.schedule == schedule
    assert repr(source) == "linear_schedule(1.0, 0.0, 10)"
    tx = optax.sgd(schedule)
    state = tx.init(jnp.ones(1))
    for expected in (-1.0, -0.9):
        updates, state = tx.update(jnp.ones(1), state)
        close(updates, [expected])


# ---------------------------------------------------------------- what is refused

COSINE = (0.0, 1.0, 10, 100)
NAN, INF = float("nan"), float("inf")
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("constant_schedule", (NAN,), {}, "value must be in"),
    ("constant_schedule", ("0.1",), {}, "value must be one real number, got '0.1'"),
    ("constant_schedule", (np.ones(2),), {}, "value must be one real number"),
    ("constant_schedule", (True,), {}, "value must be one real number"),
    ("constant_schedule", (None,), {}, "value must be one real number"),
    ("constant_schedule", (1j,), {}, "value must be one real number"),
    ("linear_schedule", (INF, 0.0, 10), {}, "init_value must be in"),
    ("linear_schedule", (1.0, jnp.array(jnp.nan), 10), {}, "end_value must be in"),
    ("linear_schedule", (1.0, 0.0, INF), {}, "transition_steps must be in"),
    ("polynomial_schedule", (1.0, 0.0, -1, 10), {}, r"power must be in \[0, inf\), got -1"),
    ("polynomial_schedule", (1.0, 0.0, 2, "9"), {}, "transition_steps must be one real"),
    ("cosine_decay_schedule", (1.0, 0), {}, "decay_steps must be in"),
    ("cosine_decay_schedule", (1.0, True), {}, "decay_steps must be one real number"),
    ("cosine_decay_schedule", (1.0, 10), {"alpha": NAN}, "alpha must be in"),
    ("cosine_decay_schedule", (1.0, 10), {"exponent": -1.0}, "exponent must be in"),
    ("exponential_decay", (1.0, 10, -0.5), {}, "decay_rate must be in"),
    ("exponential_decay", (1.0, 10, 0.5), {"end_value": NAN}, "end_value must be in"),
    ("piecewise_constant_schedule", (1.0, [(5, 0.1)]), {}, "boundaries_and_scales must be a dict"),
    ("piecewise_constant_schedule", (1.0, {5: -0.1}), {}, r"boundaries_and_scales\[5\] must be"),
    ("piecewise_constant_schedule", (1.0, {INF: 0.1}), {}, "a boundary in boundaries_and_scales"),
    ("piecewise_interpolate_schedule", ("cubic", 1.0, {}), {}, "interpolate_type must be"),
    ("piecewise_interpolate_schedule", ("linear", NAN), {}, "init_value must be"),
    ("piecewise_interpolate_schedule", ("linear", 1.0, {5: INF}), {}, r"_scales\[5\] must be"),
    ("linear_onecycle_schedule", (0, 1.0), {}, "steps of a linear onecycle must be in"),
    ("linear_onecycle_schedule", (9, 1.0, 1.5), {}, r"pct_start must be in \[0.0, 1\]"),
    ("linear_onecycle_schedule", (9, 1.0, 0.5, 0.4), {}, r"pct_final must be in \[0.5, 1\]"),
    ("linear_onecycle_schedule", (9, 1.0), {"div_factor": 0.0}, "div_factor must be in"),
    ("linear_onecycle_schedule", (9, 1.0), {"final_div_factor": -1.0}, "final_div_factor must"),
    ("cosine_onecycle_schedule", (-1, 1.0), {}, "steps of a cosine onecycle must be in"),
    ("cosine_onecycle_schedule", (9, NAN), {}, "peak_value must be in"),
    ("cosine_onecycle_schedule", (9, 1.0, -0.1), {}, "pct_start must be in"),
    ("warmup_constant_schedule", (0.0, 1.0, -1), {}, "warmup_steps must be in"),
    ("warmup_cosine_decay_schedule", (0.0, 1.0, 10, 10), {}, "decay_steps must be more than warm"),
    ("warmup_cosine_decay_schedule", (0.0, INF, 10, 20), {}, "peak_value must be in"),
    ("warmup_cosine_decay_schedule", (0.0, 1.0, -1, 10), {}, "warmup_steps must be in"),
    ("warmup_cosine_decay_schedule", COSINE, {"end_value": "0"}, "end_value must be one real"),
    ("warmup_cosine_decay_schedule", COSINE, {"exponent": -1}, "exponent must be in"),
    ("warmup_exponential_decay_schedule", (*COSINE, -1.0), {}, "decay_rate must be in"),
    ("sgdr_schedule", ([],), {}, "cosine_kwargs must have at least one cycle"),
    ("sgdr_schedule", (iter([CYCLE]),), {}, "cosine_kwargs must be a list"),
    ("sgdr_schedule", ([CYCLE, {}],), {}, r"cosine_kwargs\[1\]: .* needs init_value, peak_value"),
    ("sgdr_schedule", ([3],), {}, r"cosine_kwargs\[0\]: "),
    ("sgdr_schedule", ([{**CYCLE, "decay_steps": 2}],), {}, r"cosine_kwargs\[0\]: .*decay_steps"),
    ("join_schedules", ([], []), {}, "boundaries must be one fewer"),
    ("join_schedules", ([abs, abs], [1, 2]), {}, "boundaries must be one fewer"),
    ("join_schedules", ([abs, abs], []), {}, "boundaries must be one fewer"),
    ("join_schedules", ([abs, 0.1], [1]), {}, r"schedules\[1\] must be a function .*got 0.1"),
    ("join_schedules", ([paths.by_path({"a": 1.0})], []), {}, r"schedules\[0\] must be"),
    ("join_schedules", ([abs, abs, abs], [5, 2]), {}, r"boundaries must not descend, got \[5, 2\]"),
    ("join_schedules", ([abs, abs], 5), {}, "boundaries must be a list"),
    ("join_schedules", (abs, []), {}, "schedules must be a list"),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "match"), BAD, ids=lambda v: None)
def test_refused(name: str, args: Any, kwargs: Any, match: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}.*: .*{match}"):
        NAMES[name](*args, **kwargs)


def test_traced_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="linear_schedule: transition_steps must be known before"):
        jax.jit(lambda n: curves.linear_schedule(1.0, 0.0, n)(0))(5)
    with pytest.raises(
        ValueError, match="linear_onecycle_schedule: pct_start must be known before"
    ):
        jax.jit(lambda a: piecewise.linear_onecycle_schedule(9, 1.0, a)(0))(0.5)
