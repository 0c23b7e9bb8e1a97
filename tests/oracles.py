"""What each algorithm is checked against, beside the laws: ``python tests/oracles.py``.

It prints docs/oracles.md. An oracle is an implementation that shares no code with this library:
the float64 NumPy references in tests/references, Optax where it has the algorithm and its numbers
are kept, and the trajectories that other implementations made (tests/trajectories).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import cases
import numpy as np
import references
from optax_names import OWN
from trajectories import table, table_others

import gradx

HERE = Path(__file__).parent

HEAD = """\
# What the numbers are checked against

`python tests/oracles.py` prints this page; a test compares the two.

Each algorithm follows a float64 reference in NumPy, written from its paper (`tests/references`),
and Optax, where Optax has it. Beyond these, it follows the trajectory of an implementation that
somebody else wrote, its authors where they published one: 30 steps from the same start with the
same gradients, in float64, to 1e-12 (GaLore, whose singular vectors are float32: to 1e-6; two that
have an eps where this library has none: to 1e-11). The arrays are stored in `tests/trajectories`,
so the tests need none of these packages.

Some of these implementations differ from Optax for some arguments, and so, in most cases, from this
library: `tests/trajectories/table_others.py` says where, and takes arguments for which they agree.
"""

# Compared in test_trajectories.py itself.
LIVE = {"scale_by_lbfgs": ["`scipy.optimize.LbfgsInvHessProduct`"]}

# Why there is no trajectory, where one might look for one.
WITHOUT = {
    "add_noise": "none: it is random",
    "noisy_sgd": "none: it is random",
    "mechanize": (
        "none: the authors' PyTorch code is another variant (the reward is not clipped, the "
        "largest product starts from 1e-6, the decay is at the point after the base step); "
        "the experiments of their paper used Optax's"
    ),
}


def kinds() -> dict[str, list[str]]:
    """Public names: those in tests/cases.py, and what else has a trajectory."""
    optimizers = {case.factory for case in cases.CASES if case.descends}
    others = {case.factory for case in cases.CASES} - optimizers
    followed = {about(key, set(OWN)) for key in rows()} - {""}
    return {
        "Optimizers": sorted(optimizers),
        "Other transformations": sorted(others),
        "With tests of their own": sorted(followed - optimizers - others),
    }


@cache
def versions() -> dict[str, str]:
    with np.load(HERE / "trajectories" / "others.npz") as file:
        stored = {k: str(file[k]) for k in file.files if k.startswith("version/")}
    return {key.removeprefix("version/"): version for key, version in stored.items()}


def label(row: table.Row | table_others.Row) -> str:
    """Whose implementation of what."""
    if isinstance(row, table.Row):
        return f"`torch.optim.{row.torch}`"
    name = row.call.rpartition(":")[2].rpartition(".")[2]
    if row.source == "torch":
        return f"`torch.optim.{name}`"
    version = versions()[row.source]
    if row.source.startswith("github.com/"):
        return f"`{name}` of [{row.source[11:]}](https://{row.source}) at {version[:7]}"
    return f"`{name}` of {row.source} {version}"


@cache
def codes() -> dict[Any, str]:
    """The public functions, by what Python runs for them."""
    public = {name: inspect.unwrap(getattr(gradx, name)) for name in OWN}
    return {f.__code__: name for name, f in public.items() if inspect.isfunction(f)}


@cache
def called(key: str) -> frozenset[str]:
    """The factories of this library that making the row's transformation goes through."""
    names: set[str] = set()

    def note(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code in codes():
            names.add(codes()[frame.f_code])

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        rows()[key].ours(gradx)
    finally:
        sys.setprofile(before)
    return frozenset(names)


@cache
def repetitions() -> frozenset[str]:
    """The rows that go through no factory but those of the rows before them."""
    gone_through: set[str] = set()
    repeat: set[str] = set()
    for key in rows():
        if called(key) <= gone_through:
            repeat.add(key)
        gone_through |= called(key)
    return frozenset(repeat)


def rows() -> dict[str, Any]:
    others = {k: row for k, row in table_others.ROWS.items() if not row.ahead}
    return {**{f"torch {k}": row for k, row in table.ROWS.items()}, **others}


def about(key: str, names: set[str]) -> str:
    """What a row is about: the longest name that its key begins with."""
    key = key.removeprefix("torch ")
    fitting = [n for n in names if key == n or key.startswith(n + "_")]
    return max(fitting, key=len, default="")


def found(names: set[str]) -> dict[str, list[str]]:
    """Each name with its oracles: rows about it, or else what it is a part of that has some."""
    own = {name: [*labels] for name, labels in LIVE.items()}
    for key, row in rows().items():
        own.setdefault(about(key, names), []).append(label(row))
    parts: dict[str, set[str]] = {}
    for key in rows():
        for name in called(key) & names:
            parts.setdefault(name, set()).add(about(key, names))
    return {
        name: sorted(set(own[name]), key=str.casefold)
        if name in own
        else through(parts.get(name, set()) - {""})
        for name in names
    }


def through(wholes: set[str]) -> list[str]:
    """As a part of these; three are shown."""
    shown = [f"`{name}`" for name in sorted(wholes)]
    more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
    return [f"part of {', '.join(shown[:3])}{more}"] if shown else []


def page() -> str:
    return "\n".join([HEAD, *_lines()]) + "\n"


def _lines() -> Iterator[str]:
    groups = kinds()
    every = {name for group in groups.values() for name in group}
    oracles = found(every)
    of_optax = {case.factory for case in cases.CASES if case.in_optax}
    for title, names in groups.items():
        counts = [
            sum(hasattr(references, name) for name in names),
            sum(name in of_optax for name in names),
            sum(bool(oracles[name]) for name in names),
        ]
        yield f"## {title}"
        yield ""
        yield (
            f"{len(names)} in all. With a reference: {counts[0]}; compared with Optax: "
            f"{counts[1]}; with another implementation: {counts[2]}."
        )
        yield ""
        yield "| name | reference | Optax | another implementation |"
        yield "| --- | --- | --- | --- |"
        for name in names:
            marks = ["yes" if hasattr(references, name) else "", "yes" if name in of_optax else ""]
            other = "; ".join(oracles[name]) or WITHOUT.get(name, "none")
            yield f"| `{name}` | {' | '.join(marks)} | {other} |"
        yield ""


if __name__ == "__main__":
    print(page(), end="")
