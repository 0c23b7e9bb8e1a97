"""The jobs to compile: a row, by a library, on a tree, for one chip or many; and sets of jobs."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import cases
from benchmarks.compiled.chips import Chip

ROOT = Path(__file__).parents[2]

# The rows that call for QR, eigenvalues or singular values (`chips.Chip.thin`).
DECOMPOSES = re.compile("galore|soap|splus|shampoo|psgd")


@dataclass(frozen=True)
class Job:
    """One program to compile.

    Attributes:
      row: its name in the table.
      library: the library of the transformation, `gradx` or `optax`.
      tree: the parameters, a name in `trees.TREES`.
      sharded: whether it is for many chips, each of which has a part of the rows of every array.
      table: the table of the row: that of `benchmarks`, the `watched` ones beside it, or that of
        `tests`, with 200 rows.
    """

    row: str
    library: str
    tree: str
    sharded: bool = False
    table: str = "benchmarks"


def rows(pattern: str) -> list[Job]:
    """All rows on one chip."""
    chosen = cases.chosen(pattern)
    return [Job(case.name, lib, case.compiled_tree) for case in chosen for lib in case.libraries]


def mesh(pattern: str) -> list[Job]:
    """Rules for matrices on many chips, and on one to compare with."""
    chosen = [
        case
        for case in cases.chosen(pattern)
        if case.name in ("muon", "normuon", "soap", "shampoo")
    ]
    return [
        Job(case.name, lib, "deep", sharded)
        for case in chosen
        for lib in case.libraries
        for sharded in (True, False)
    ]


def mechanisms(pattern: str, sharded: bool = False) -> list[Job]:
    """The rows that together use every mechanism of gradx, and Optax's where it has them."""
    sys.path.insert(0, str(ROOT / "tests"))
    chosen = importlib.import_module("mechanisms").representatives()
    table = [row for row in importlib.import_module("cases").CASES if row.id in chosen]
    return [
        Job(row.id, lib, "narrow", sharded, "tests")
        for row in table
        if re.search(pattern, row.id)
        for lib in ("gradx", "optax")[: 1 + row.in_optax]
    ]


def sharded(pattern: str) -> list[Job]:
    """The same on many chips."""
    return mechanisms(pattern, sharded=True)


def watch(pattern: str) -> list[Job]:
    """Steps that are watched, and the same ones that are not."""
    chosen = cases.chosen(pattern, table=cases.WATCHED)
    return [Job(case.name, "gradx", case.compiled_tree, table="watched") for case in chosen]


def asked(study: str, chip: Chip, pattern: str) -> list[Job]:
    """The jobs of a study for a chip, on trees that its compiler can finish."""
    return [
        replace(job, tree=f"{job.tree} thin") if chip.thin and DECOMPOSES.search(job.row) else job
        for job in STUDIES[study](pattern)
    ]


STUDIES: dict[str, Callable[[str], Sequence[Job]]] = {
    "rows": rows,
    "mesh": mesh,
    "mechanisms": mechanisms,
    "sharded": sharded,
    "watch": watch,
}
