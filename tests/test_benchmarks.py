"""The benchmark measures everything: no algorithm of the table is left out of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from cases import CASES

import gradx
from benchmarks import __main__ as command
from benchmarks import cases, runners, steps

PARAMS = {"query": jnp.ones((4, 4))}  # by a name that qk_clip knows


def names(tx: Any) -> Iterator[str]:
    """The factories that a transformation is made with, and its parts."""
    if getattr(tx, "spec", None) is not None:
        yield tx.spec.name
    if getattr(tx, "parts", None) is not None:
        for part in tx.parts(PARAMS, tx.init(PARAMS)):
            yield from names(part.transform)


def test_every_row_of_the_table_is_measured() -> None:
    measured = {name for case in cases.CASES for name in names(case.make(gradx))}
    assert not {case.factory for case in CASES} - measured
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)


def test_at_an_accelerator_rows_are_large_and_what_takes_too_long_is_named() -> None:
    given = command.parser().parse_args(["--accelerator", "--rows", "^(sgd|muon)$", "--no-torch"])
    asked = command.settings_of(given)
    assert asked.large
    assert (asked.burst, asked.sections) == (10, ("yardstick", "precisions", "steps"))
    short = replace(asked, quick=True, repeats=1, minutes=0.0)
    assert steps.measure(short) == {"rows": [], "left_out": ["sgd", "muon"]}
    made = steps.measure(replace(short, minutes=1.0, rows="^sgd$", burst=2))
    assert made["left_out"] == []
    assert made["rows"][0]["competitors"]["gradx"]["ms"]["median"] > 0
    assert "want of time: muon, sgd" in steps.render({"": {**made, "left_out": ["sgd", "muon"]}})


@pytest.mark.filterwarnings("ignore:.optimistic_adam. is deprecated")
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_every_row_can_be_traced_for_both_libraries(case: cases.Case) -> None:
    for library in (gradx, optax):
        if library.__name__ not in case.libraries:
            continue
        tx = case.make(library)
        params = jax.eval_shape(lambda: PARAMS)
        state = jax.eval_shape(tx.init, params)
        new, _ = jax.eval_shape(runners.step_of(library, case, tx), params, state, params)
        assert jax.tree.structure(new) == jax.tree.structure(params)
