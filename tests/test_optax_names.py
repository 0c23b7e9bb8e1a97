"""Optax's names are gradx's: every one that the installed Optax has, with the same signature."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import optax
import optax_names
import pytest
from optax_names import EXCEPTIONS, LEFT_OUT, REASONS, Row, differences, row, rows, signatures

import gradx

ROWS = rows()

ADVICE = {
    "missing": (
        "Optax {version} exports {name}, a {kind}, and gradx does not. Write it, or put the name "
        "into LEFT_OUT in tests/optax_names.py with a reason."
    ),
    "differs": (
        "gradx.{name} is not Optax {version}'s {kind}: {problem}. gradx may append arguments that "
        "are keyword-only; if the difference is meant, put it into EXCEPTIONS in "
        "tests/optax_names.py with a reason, and into docs/differences.md."
    ),
}


@pytest.mark.parametrize("found", [r for r in ROWS if not r.left_out], ids=lambda r: r.name)
def test_gradx_has_it(found: Row) -> None:
    advice = ADVICE["missing" if found.problem == "missing" else "differs"]
    assert not found.problem, advice.format(version=optax.__version__, **vars(found))


def test_the_table_finds_optaxs_names() -> None:
    by_kind: dict[str, set[str]] = {}
    for found in ROWS:
        if not found.left_out:
            by_kind.setdefault(found.kind, set()).add(found.name)
    assert {"adamw", "prodigy", "inject_hyperparams", "join_schedules"} < by_kind["function"]
    assert {"ScaleByAdamState", "SAMState", "InjectHyperparamsState"} < by_kind["state"]
    assert {"Params", "StatefulSchedule", "EmptyState", "ClipState"} < by_kind["contract type"]
    assert {"MultiSteps", "WrappedSchedule"} <= by_kind["class"]
    assert {"LookaheadParams", "ZoomLinesearchInfo"} < by_kind["named tuple"]
    assert len(ROWS) > 270


def test_nothing_stands_in_the_tables_without_need() -> None:
    names = {found.name for found in ROWS}
    assert len(REASONS) == sum(len(listed.split()) for listed in LEFT_OUT.values())
    assert not set(REASONS) - names
    packages = {found.name for found in ROWS if found.kind == "package"}
    assert not [n for n in set(REASONS) - packages if hasattr(gradx, n)], "gradx has them now"
    assert {key for found in ROWS for key in found.exceptions} == set(EXCEPTIONS)


# ---------------------------------------------------------------- the comparison sees differences


def theirs(a: int, b: float = 0.5, *, c: Any = None) -> None: ...
def appended(a: int, b: float = 0.5, *, d: bool = True, c: Any = None) -> None: ...
def lacks(a: int, b: float = 0.5) -> None: ...
def swapped(b: float, a: int = 0, *, c: Any = None) -> None: ...
def another_default(a: int, b: float = 0.6, *, c: Any = None) -> None: ...
def a_bool(a: int, b: float = 0.5, *, c: Any = False) -> None: ...
def another_kind(a: int, b: float = 0.5, c: Any = None) -> None: ...
def positional(a: int, b: float = 0.5, d: int = 3, *, c: Any = None) -> None: ...
def optional(a: int = 0, b: float = 0.5, *, c: Any = None) -> None: ...


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (theirs, []),
        (appended, []),
        (lacks, ["lacks c"]),
        (another_default, ["b is 0.6, in Optax 0.5"]),
        (a_bool, ["c is False, in Optax None"]),
        (another_kind, ["c is positional or keyword, in Optax keyword-only"]),
        (positional, ["d is not in Optax, and not keyword-only"]),
        (optional, ["a is 0, in Optax required"]),
    ],
)
def test_differences_of_signatures(ours: Any, said: list[str]) -> None:
    found = signatures(inspect.signature(ours), inspect.signature(theirs))
    assert [problem for _, problem in found] == said


def test_the_order_of_arguments_counts() -> None:
    found = signatures(inspect.signature(swapped), inspect.signature(theirs))
    assert "has the order ['b', 'a'], in Optax ['a', 'b']" in [problem for _, problem in found]


def test_differences_of_states_and_types() -> None:
    class Ours(NamedTuple):
        nu: Any
        mu: Any

    class Theirs(NamedTuple):
        mu: Any
        nu: Any

    assert [where for where, _ in differences("state", Ours, Theirs)] == ["_fields"]
    assert list(differences("state", Theirs, Theirs)) == []
    assert list(differences("contract type", gradx.EmptyState, optax.EmptyState)) == []
    assert list(differences("contract type", Ours, optax.EmptyState))
    assert [w for w, _ in differences("class", gradx.WrappedSchedule, optax.MultiSteps)]


def test_a_new_name_of_optax_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optax, "brand_new", theirs, raising=False)
    assert [r for r in rows() if r.problem == "missing"] == [
        Row("brand_new", "function", "missing"),
        *(r for r in ROWS if r.problem == "missing"),
    ]
    assert row("adam", optax.adam) == Row("adam", "function")


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert optax_names.main() == any(found.problem for found in ROWS)
    printed = capsys.readouterr().out
    assert f"Optax {optax.__version__}: " in printed
    assert "left out: a loss" in printed
