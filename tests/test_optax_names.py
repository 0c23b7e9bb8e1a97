"""`import gradx as optax`: every public name of the installed Optax is answered, and by whom."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
import optax_names
import pytest
from optax_names import ANSWERED, EXCEPTIONS, OWN, Row, answers, differences, row, rows, signatures

import gradx
from gradx.core import mirror
from gradx.core.suggestions import nearest

ROWS = rows()
ANSWERS = answers()
NAMESPACES = [path for path, by in ANSWERS.items() if by == "a namespace" and "." not in path]

ADVICE = {
    "missing": "Optax {version} exports {name}, a {kind}, and gradx does not. Write it.",
    "differs": (
        "gradx.{name} is not Optax {version}'s {kind}: {problem}. gradx may append arguments that "
        "are keyword-only; if the difference is meant, put it into EXCEPTIONS in "
        "tests/optax_names.py with a reason, and into docs/differences.md."
    ),
}


@pytest.mark.parametrize("found", ROWS, ids=lambda r: r.name)
def test_gradx_has_it(found: Row) -> None:
    advice = ADVICE["missing" if found.problem == "missing" else "differs"]
    assert not found.problem, advice.format(version=optax.__version__, **vars(found))


def test_the_table_finds_optaxs_names() -> None:
    by_kind: dict[str, set[str]] = {}
    for found in ROWS:
        by_kind.setdefault(found.kind, set()).add(found.name)
    assert {"adamw", "prodigy", "inject_hyperparams", "join_schedules"} < by_kind["function"]
    assert {"ScaleByAdamState", "SAMState", "InjectHyperparamsState"} < by_kind["state"]
    assert {"Params", "StatefulSchedule", "EmptyState", "ClipState"} < by_kind["contract type"]
    assert {"MultiSteps", "WrappedSchedule"} <= by_kind["class"]
    assert {"LookaheadParams", "ZoomLinesearchInfo"} < by_kind["named tuple"]
    assert len(ROWS) > 225


def test_nothing_stands_in_the_tables_without_need() -> None:
    assert {key for found in ROWS for key in found.exceptions} == set(EXCEPTIONS)


# ---------------------------------------------------------------- who answers


def test_every_name_of_optax_is_answered() -> None:
    """Nested too; and what gradx has itself is gradx's, under whatever name Optax has it."""
    assert len(ANSWERS) > 450
    assert {path: by for path, by in ANSWERS.items() if by not in ANSWERED} == {}


def test_the_walk_reaches_every_corner() -> None:
    assert ANSWERS["contrib.muon"] == ANSWERS["tree.map_params"] == ANSWERS["dpsgd"] == "gradx"
    assert ANSWERS["tree.scale"] == ANSWERS["losses.l2_loss"] == ANSWERS["l2_loss"] == "Optax"
    assert ANSWERS["experimental.aggregating"] == "a namespace"
    assert gradx.tree.scale is optax.tree.scale is not gradx.scale
    assert gradx.contrib.muon is gradx.muon is not optax.contrib.muon


def test_what_makes_a_transformation_is_told_from_what_does_not() -> None:
    told = optax_names.is_ours_to_write
    made = [optax.adam, optax.ScaleByAdamState, optax.GradientTransformation, optax.sgdr_schedule]
    assert all(map(told, made))
    assert not any(map(told, [optax.l2_loss, optax.tree.get, optax.microbatch, optax.Params]))


@pytest.mark.parametrize("name", ["", *NAMESPACES, "experimental.aggregating"])
def test_a_namespace_can_be_imported_in_every_way(name: str) -> None:
    mine = f"gradx.{name}".rstrip(".")
    module = importlib.import_module(mine)
    mirrored, theirs = gradx, optax
    for part in mine.split(".")[1:]:
        mirrored, theirs = getattr(mirrored, part), getattr(theirs, part)
    assert mirrored is module
    public = set(optax_names.names(theirs))
    assert set(dir(module)) == set(module.__all__) >= public
    starred: dict[str, Any] = {}
    exec(f"from {mine} import *", starred)
    assert public <= set(starred)


@pytest.mark.parametrize("name", ["", *NAMESPACES])
def test_type_checkers_know_the_names(name: str) -> None:
    """They read what stands under TYPE_CHECKING: the names that are there when it is run."""
    module = importlib.import_module(f"gradx.{name}".rstrip("."))
    told = set()
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
        if isinstance(node, ast.ImportFrom):
            told |= {alias.name for alias in node.names if alias.name == alias.asname}
        elif isinstance(node, ast.Assign):
            told |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    told -= {"__all__", "__version__"}
    assert told == set(dir(module)) - (set() if name else set(OWN))


def test_names_that_optax_deprecates_are_answered_as_there() -> None:
    with pytest.warns(DeprecationWarning, match="tree_l2_norm is deprecated"):
        assert gradx.tree_utils.tree_l2_norm(jnp.array([3.0, 4.0])) == 5.0
    with warnings.catch_warnings(), pytest.raises(AttributeError, match="no 'monte_carlo'"):
        gradx.monte_carlo  # noqa: B018
    assert gradx.dpsgd is gradx.contrib.dpsgd  # without a warning: it is gradx's


def test_a_namespace_without_a_file_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that Optax adds later."""
    space = ModuleType("optax.brand_new")
    space.adam, space.distance = optax.adam, theirs  # type: ignore[attr-defined]
    monkeypatch.setattr(optax, "brand_new", space, raising=False)
    monkeypatch.setitem(sys.modules, "gradx.brand_new", None)  # what is put there goes afterwards
    monkeypatch.delitem(sys.modules, "gradx.brand_new")
    found = gradx.brand_new
    assert found is gradx.brand_new
    assert (found.adam, found.distance) == (gradx.adam, theirs)
    assert dir(found) == ["adam", "distance"]


def test_a_namespace_that_optax_does_not_have() -> None:
    with pytest.raises(ImportError, match=rf"^gradx.aggregation .* Optax {optax.__version__}"):
        mirror.mirror("gradx.aggregation")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[("adma", "adam"), ("Adam", "adam"), ("AdamW", "adamw"), ("SGD", "sgd"), ("Adan", "adan")],
        *[("NAdam", "nadam"), ("RAdam", "radam"), ("RMSprop", "rmsprop"), ("LBFGS", "lbfgs")],
        *[("Adagrad", "adagrad"), ("Adadelta", "adadelta"), ("Adamax", "adamax")],
        *[("Rprop", "rprop"), ("Muon", "muon"), ("Adafactor", "adafactor"), ("Lion", "lion")],
        *[("hubber_loss", "huber_loss"), ("scaleByAdam", "scale_by_adam"), ("loses", "losses")],
        *[("cosine_decay", "cosine_decay_schedule"), ("multisteps", "MultiSteps")],
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=f"^gradx has no '{name}', .* mean '{meant}'\\?$"):
        getattr(gradx, name)


def test_every_name_is_found_by_a_slip_of_it() -> None:
    """Two letters swapped, and written as a class."""
    for name in OWN[::3]:
        middle = len(name) // 2 - 1
        swapped = name[:middle] + name[middle + 1] + name[middle] + name[middle + 2 :]
        for slip in {swapped, name.title().replace("_", "")} - set(dir(gradx)):
            assert nearest(slip, dir(gradx)) == name, slip


def test_a_misspelt_name_of_a_namespace_too() -> None:
    with pytest.raises(AttributeError, match=r"^gradx.losses has no .* mean 'huber_loss'\?$"):
        gradx.losses.hubber_loss  # noqa: B018


def test_what_is_not_public_is_not_looked_up() -> None:
    for name in ("_src", "__wrapped__", "_typing"):
        assert not hasattr(gradx, name)
        assert not hasattr(gradx.losses, name)
    for name in ("functools", "typing"):
        assert hasattr(optax.tree_utils, name)
        assert not hasattr(gradx.tree_utils, name)


def test_dir_shows_the_public_names_and_no_internal_modules() -> None:
    shown = set(dir(gradx))
    assert set(OWN) | {"losses", "tree", "l2_loss"} < shown
    assert not {"stage", "hyper", "mirror", "types", "typing", "rules"} & shown
    assert not {name for name in shown if name.startswith("_")}
    modules = {name for name in shown if inspect.ismodule(getattr(gradx, name))}
    assert modules == set(NAMESPACES)


TYPED = """
import gradx
import gradx as optax
from gradx.contrib import muon
gradx.l2_loss, gradx.losses.huber_loss, gradx.tree.scale, gradx.experimental.aggregating
made: gradx.Transform = muon(1e-3)
tx: gradx.Transform = optax.transforms.clip(1.0)
gradx.adma
gradx.losses.hubber_loss
"""


@pytest.mark.full
def test_mypy_knows_the_names_and_refuses_misspelt_ones(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(TYPED)
    root = Path(gradx.__file__).parents[1]
    command = ["mypy", "--strict", "--config-file", str(root / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path / "user.py")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [line.partition("error: ")[2] for line in done.stdout.splitlines() if "error" in line]
    assert [message.split("  ")[0] for message in wrong if message] == [
        'Module has no attribute "adma"',
        'Module has no attribute "hubber_loss"; maybe "huber_loss"?',
    ], done.stdout + done.stderr


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
    monkeypatch.setattr(optax, "brand_new", optax.adam, raising=False)
    assert [r for r in rows() if r.problem] == [Row("brand_new", "function", "missing")]
    assert row("adam", optax.adam) == Row("adam", "function")


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert optax_names.main() == any(found.problem for found in ROWS)
    printed = capsys.readouterr().out
    assert f"Optax {optax.__version__}: " in printed
    assert f"Public names of Optax, nested: {len(ANSWERS)}." in printed
