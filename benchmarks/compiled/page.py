"""Renders the stored results as Markdown: `docs/benchmarks_targets.md`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from benchmarks import markdown, trees
from benchmarks.compiled import floors
from benchmarks.compiled.chips import CHIPS
from benchmarks.compiled.jobs import STUDIES
from benchmarks.compiled.runs import Result
from benchmarks.compiled.stored import SCALARS, TOLERANCE, Stored, file_of, load

INTRODUCTION = """# Compiled for three targets

What the compilers of a TPU v5e, an H200 and CPUs make of a step. No device is needed and nothing
is run, so the figures are exact, and the same on any machine. All are per parameter: *moved* is
what a step reads and writes in main memory, *temporaries* what it needs beside its donated
arguments, both in bytes; *kernels* are the instructions that do work, and *s* is processor time of
tracing, lowering and compiling. The tree is two transformer blocks of width 2048 in float32. Loops
and conditionals count once, with what is handed to them.

The *floor* is the least that a step can move: arithmetic over the arrays that it has to read and
write, at the end of this page. On TPUs a program may be below it, since a leaf can stay on the chip
between two passes. On CPUs XLA writes one result a loop (multi-output fusion is off), so AdamW
reads its gradient three times, and both libraries are above it.

This page is written by its own commands; `benchmarks/README.md` says how."""

ENOUGH = 1.05  # of the floor

ByLibrary = dict[str, Result]


def render() -> str:
    """The page, from all stored results."""
    kept = [load(file_of(chip, study)) for study in STUDIES for chip in CHIPS]
    parts = [INTRODUCTION, *(section(one) for one in kept if one is not None), _floors()]
    return "\n\n".join(parts) + "\n"


def section(kept: Stored) -> str:
    """The part of the page about one target."""
    title, body = SECTIONS[kept.study]
    study = "" if kept.study == "rows" else f" --study {kept.study}"
    command = f"python -m benchmarks --target {kept.target}{study} --out docs/benchmarks_targets.md"
    versions = ", ".join(f"{name} {v}" for name, v in kept.versions.items())
    head = f"## {title.format(kept.target)}\n\n* Command: `{command}`\n* Versions: {versions}"
    return f"{head}\n{_thin(kept)}{body(kept)}"


def _thin(kept: Stored) -> str:
    """Which rows have smaller matrices, and why."""
    rows = dict.fromkeys(job.row for job in kept.results if job.tree.endswith("thin"))
    if not rows:
        return ""
    return (
        "* With matrices of width 128, since this compiler writes a decomposition out for each\n"
        f"  size, which takes minutes for a larger one: {', '.join(rows)}\n"
    )


def short(result: Result) -> str:
    """A result in a few words."""
    if "error" in result:
        return str(result["error"])
    return (
        f"{result['moved']:.1f} moved, {result['temporaries']:.2f} temporaries, "
        f"{result['kernels']} kernels, {result['seconds']:.0f} s"
    )


# ---------------------------------------------------------------- rows on one chip


def floor_of(row: str, tree: str = "wide") -> float | None:
    """The least bytes a parameter that a row can move; None if it has no floor."""
    parsed = floors.parse(floors.FLOORS[row])
    return None if parsed is None else parsed.per_parameter(trees.TREES[tree](False))


def _rows(kept: Stored) -> str:
    found = _by_row(kept, sharded=False)
    head = ["row", "floor", "gradx: moved", "temporaries", "kernels", "s"]
    head += ["Optax: moved", "temporaries", "kernels", "s", "gradx / floor", "gradx / Optax"]
    lines, trees_of = [], {job.row: job.tree for job in kept.results}
    for row, results in found.items():
        ours, theirs = results.get("gradx", {}), results.get("optax", {})
        floor = floor_of(row, trees_of[row])
        cells = [row, markdown.number(floor, 1)]
        cells += [cell for one in (ours, theirs) for cell in _cells(one)]
        cells += [_ratio(ours.get("moved"), floor), _ratio(ours.get("moved"), theirs.get("moved"))]
        lines.append(cells)
    return f"{_summary(found, trees_of)}\n\n{markdown.table(head, lines)}"


def _cells(result: Result) -> list[str]:
    if "error" in result:
        return ["crash", markdown.NOTHING, markdown.NOTHING, markdown.NOTHING]
    digits = {"moved": 1, "temporaries": 2, "kernels": 0, "seconds": 0}
    return [markdown.number(result.get(name), n) for name, n in digits.items()]


def _ratio(x: float | None, y: float | None) -> str:
    return markdown.number(x / y if x is not None and y else None, 2)


def _summary(found: Mapping[str, ByLibrary], trees_of: Mapping[str, str]) -> str:
    def above(name: str) -> Iterable[str]:
        for row, of in found.items():
            ours, theirs = of.get("gradx", {}).get(name), of.get("optax", {}).get(name)
            if ours is not None and theirs is not None and ours > theirs * TOLERANCE + SCALARS:
                yield f"{row} {ours:.1f} ({theirs:.1f})"

    far = []
    for row, of in found.items():
        ours, floor = of.get("gradx", {}).get("moved"), floor_of(row, trees_of[row])
        if ours is not None and floor is not None and ours > ENOUGH * floor:
            far.append(f"{row} {ours:.1f} ({floor:.0f})")
    crashed = [
        f"{row} ({library}: {of[library]['error']})"
        for row, of in found.items()
        for library in of
        if "error" in of[library]
    ]
    said = {
        f"Rows: {len(found)}; crashes": crashed,
        "More bytes moved than Optax's": above("moved"),
        "More temporaries than Optax's": above("temporaries"),
        f"Above {ENOUGH} of the floor": far,
    }
    return "\n".join(f"* {what}: {', '.join(which) or 'none'}" for what, which in said.items())


def _by_row(kept: Stored, *, sharded: bool) -> dict[str, ByLibrary]:
    found: dict[str, ByLibrary] = {}
    for job, result in kept.results.items():
        if job.sharded == sharded:
            found.setdefault(job.row, {})[job.library] = result
    return found


# ---------------------------------------------------------------- a mesh


def _mesh(kept: Stored) -> str:
    devices = max((r.get("devices", 1) for r in kept.results.values()), default=1)
    text = (
        f"* Eight transformer blocks of width 1024, rows sharded over {devices} chips under\n"
        "  `jax.set_mesh`; bytes a parameter *and device*. *Operations*: those of a device, times\n"
        "  the number of devices, over those of one chip alone; 1 if nothing is done twice."
    )
    alone, shared = _by_row(kept, sharded=False), _by_row(kept, sharded=True)
    head = ["row", "all-gather", "all-to-all", "other", "temporaries", "operations", "s"]
    lines = []
    for row, results in shared.items():
        for library, one in results.items():
            name = row if library == "gradx" else f"{row} (Optax)"
            if "error" in one:
                lines.append([name, one["error"], *[markdown.NOTHING] * (len(head) - 2)])
                continue
            moved = dict(one["collectives"])
            whole = alone.get(row, {}).get(library, {}).get("operations")
            lines.append(
                [
                    name,
                    markdown.number(moved.pop("all-gather", 0.0), 2),
                    markdown.number(
                        moved.pop("all-to-all", 0.0) + moved.pop("ragged-all-to-all", 0.0), 2
                    ),
                    markdown.number(sum(moved.values()), 2),
                    markdown.number(one["temporaries"], 2),
                    _ratio(one["operations"] * one["devices"], whole),
                    markdown.number(one["seconds"], 0),
                ]
            )
    return f"{text}\n\n{markdown.table(head, lines)}"


# ---------------------------------------------------------------- watch

EVERY = 10  # by default


def _watch(kept: Stored) -> str:
    text = (
        "* *step*: bytes moved outside of the conditional that measures, in every step; *branch*:\n"
        f"  bytes that it moves in a watched one; *share*: branch / {EVERY} over the step without\n"
        "  `watch`."
    )
    head, lines = ["row", "step", "branch", "share", "temporaries", "s"], []
    plain = 1.0
    for job, one in kept.results.items():
        step = one["moved"] - one.get("handed", 0.0)
        if "branch" not in one:
            plain = step
        cells = [step, one.get("branch")]
        share = "branch" in one and f"{100 * one['branch'] / EVERY / plain:.1f} %"
        lines.append(
            [
                job.row,
                *(markdown.number(x, 1) for x in cells),
                share or markdown.NOTHING,
                markdown.number(one["temporaries"], 2),
                markdown.number(one["seconds"], 0),
            ]
        )
    return f"{text}\n\n{markdown.table(head, lines)}"


# ---------------------------------------------------------------- does it compile?


def _mechanisms(kept: Stored) -> str:
    found = _by_row(kept, sharded=kept.study == "sharded")
    lines = [
        [row, *(_outcome(of.get(lib)) for lib in ("gradx", "optax"))] for row, of in found.items()
    ]
    text = (
        "* The rows of `tests/cases.py` that together use every mechanism of gradx, on one\n"
        "  transformer block of width 512: moved / temporaries, or what ended the compiler."
    )
    return f"{text}\n\n{markdown.table(['row', 'gradx', 'Optax'], lines)}"


def _outcome(result: Result | None) -> str:
    if result is None:
        return markdown.NOTHING
    if "error" in result:
        return str(result["error"]).replace("|", "\\|")
    return markdown.pair(result["moved"], result["temporaries"])


# ---------------------------------------------------------------- floors


def _floors() -> str:
    lines = []
    for row, text in floors.FLOORS.items():
        arithmetic, _, note = (part.strip() for part in text.partition("#"))
        shown = markdown.NOTHING if arithmetic == "none" else f"`{arithmetic}`"
        lines.append([row, markdown.number(floor_of(row), 1), shown, note])
    head = ["row", "bytes", "passes: reads -> writes", ""]
    text = (
        "## Floors\n\nPasses are separated by semicolons. An array is like the parameters, with 4\n"
        "bytes an element; `x:2` has 2, a capital is the Gram matrix of each matrix, and `5 *` a\n"
        "pass that is done five times."
    )
    return f"{text}\n\n{markdown.table(head, lines)}"


SECTIONS: dict[str, tuple[str, Callable[[Stored], str]]] = {
    "rows": ("{}: all rows, on one chip", _rows),
    "mesh": ("{}: matrix rules on a mesh", _mesh),
    "mechanisms": ("{}: every mechanism, on one chip", _mechanisms),
    "watch": ("{}: what `watch` costs", _watch),
    "sharded": ("{}: every mechanism, rows sharded over many chips", _mechanisms),
}
