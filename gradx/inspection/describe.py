"""A table of a chain: what each part does, to which parameters, and what it keeps."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gradx import core
from gradx.core import Params, State
from gradx.core import trees as gtree
from gradx.core.calls import checked
from gradx.core.table import table
from gradx.core.vocabulary import numbers_of
from gradx.lift.sequence import rules_of
from gradx.numbers.paths import ByPath
from gradx.numbers.sources import Source

__all__ = ["Description", "describe", "state_bytes"]


@dataclass(frozen=True)
class Row:
    """One part of a chain.

    Attributes:
      branch: the lines of the tree that is drawn before the name.
      below: the same, before the further lines of the row.
      name: the factory that made the part.
      numbers: its hyperparameters and options, and where they come from.
      paths: the leaves it acts on.
      state: the dtypes that it keeps, with their bytes.
      values: what each of its numbers is, by name and leaf; None if only Optax knows.
    """

    branch: str
    below: str
    name: str
    numbers: str
    paths: tuple[str, ...]
    state: Counter[str]
    values: Mapping[str, Mapping[str, str]] | None = field(default_factory=dict)


@dataclass(frozen=True)
class Description:
    """The table that `describe` makes: text as wide as the terminal, HTML in a notebook.

    Attributes:
      rows: the parts, from the outside in.
      paths: the leaves of the parameters.
    """

    rows: tuple[Row, ...]
    paths: tuple[str, ...]

    @property
    def total(self) -> int:
        """The number of leaves of the parameters."""
        return len(self.paths)

    def by_leaf(self, number: str) -> ByLeaf:
        """What a number of the chain is at each leaf, such as the weight decay.

        Args:
          number: its name in the table, such as ``"weight_decay"``.

        Returns:
          A text by path, which prints as a table: the number, or several if several parts have it,
          ``-`` where none has, and ``?`` where a part of Optax may.

        Raises:
          ValueError: no part has a number of this name.

        Example:
          >>> import gradx, jax.numpy as jnp
          >>> tx = gradx.adamw(1e-3, weight_decay=0.1, mask=gradx.weights_only)
          >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
          >>> gradx.describe(tx, params).by_leaf("weight_decay")
          leaf    weight_decay
          ──────  ────────────
          bias    -
          kernel  0.1
        """
        names = sorted({name for row in self.rows for name in row.values or ()})
        if number not in names and all(row.values is not None for row in self.rows):
            raise ValueError(f"by_leaf: there is no number {number!r} here, but {names}.")
        found: dict[str, list[str]] = {path: [] for path in self.paths}
        for row in self.rows:
            said = dict.fromkeys(row.paths, "?") if row.values is None else row.values.get(number)
            for path, text in (said or {}).items():
                found[path].append(text)
        made = ByLeaf({path: ", ".join(texts) or "-" for path, texts in found.items()})
        made.number = number
        return made

    def cells(self) -> Iterator[tuple[str, str, str, str]]:
        yield "transformation", "numbers", "leaves", "state"
        for row in self.rows:
            leaves = "all" if len(row.paths) == self.total else f"{len(row.paths)}/{self.total}"
            state = ", ".join(f"{dtype} {_bytes(n)}" for dtype, n in row.state.items())
            few = gtree.listed(row.paths, 2).replace("'", "") if leaves != "all" else ""
            yield row.branch + row.name, row.numbers, f"{leaves} {few}".strip(), state

    def __str__(self) -> str:
        leads = [("", ""), *((row.branch, row.below) for row in self.rows)]
        return table(
            [
                (name.removeprefix(branch), numbers, leaves, re.sub(r" (?=\d|\w?B)", "\xa0", state))
                for (name, numbers, leaves, state), (branch, _) in zip(
                    self.cells(), leads, strict=True
                )
            ],
            leads,
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = self.cells()
        rows = ["<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>"]
        for cells in body:
            tds = "".join(
                f'<td style="text-align:left;white-space:pre">{html.escape(c)}</td>' for c in cells
            )
            rows.append(f"<tr>{tds}</tr>")
        return f"<table>{''.join(rows)}</table>"


class ByLeaf(dict[str, str]):
    """A number at each leaf, by path; it prints as a table."""

    number = ""

    def __repr__(self) -> str:
        rows = [("leaf", self.number), *self.items()]
        return table(rows, [("", "")] * len(rows))


@checked
def describe(tx: optax.GradientTransformation, params: Params) -> Description:
    """The parts of a chain as a table: numbers, where they act, and what they keep.

    Args:
      tx: a transformation; parts that are Optax's show as one line each.
      params: the parameters, or their shapes (`jax.eval_shape` of what makes them): nothing is
        computed.

    Returns:
      A table to print, as wide as the terminal but at least 80 columns; text too long for its
      column goes on below. A number by path has a line for each value, with its leaves;
      ``describe(…).by_leaf("weight_decay")`` tells a number leaf by leaf.

    Raises:
      ValueError: whatever `tx.init(params)` raises.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.adamw(1e-3, weight_decay=gradx.by_path({"bias": 0.0}, default=0.1))
      >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
      >>> print(gradx.describe(tx, params))
      transformation             numbers                  leaves      state
      ─────────────────────────  ───────────────────────  ──────────  ────────────────
      adamw                                               all         int32 4 B,
      │                                                               float32 320 B
      ├─ scale_by_adam           b1=0.9 b2=0.999          all         int32 4 B,
      │                          eps=1e-08 eps_root=0.0               float32 320 B
      ├─ add_decayed_weights     weight_decay=by_path(…)  all
      │    weight_decay=0.0                               1/2 bias
      │    weight_decay=0.1                               1/2 kernel
      └─ scale_by_learning_rate  learning_rate=0.001      all
    """
    arrays, with_arrays = gtree.picked(params, lambda x: hasattr(x, "dtype") or gtree.is_number(x))
    shapes = jax.eval_shape(lambda xs: xs, arrays)
    state = jax.eval_shape(lambda xs: tx.init(with_arrays(xs)), shapes)
    rows = _rows(core.Part("", tx, with_arrays(shapes), state))
    return Description(tuple(rows), tuple(_visible(params)))


def state_bytes(state: State) -> int:
    """The bytes that a state takes, all devices together.

    Args:
      state: a tree of arrays, or of their shapes.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> gradx.state_bytes(gradx.adam(1e-3).init(jnp.ones(100)))
      804
    """
    return sum(_bytes_by_dtype(state).values())


_DEEPEST = 10  # parts further inside are not indented more, but have their depth before them


def _rows(whole: core.Part) -> Iterator[Row]:
    """The row of a part, then those of its own parts, from the outside in."""
    waiting = [(whole, 0, "", "")]
    while waiting:  # not by recursion: a chain that grew in a loop may be hundreds deep
        part, depth, first, rest = waiting.pop()
        rows, parts = _row(part, first, rest)
        yield from rows
        lines = [("├─ ", "│  ")] * (len(parts) - 1) + [("└─ ", "   ")]
        if depth >= _DEEPEST:
            lines = [(f"⋯{depth + 1} ", "")] * len(parts)
        waiting += reversed(
            [
                (inner, depth + 1, rest + to_it, rest + past_it)
                for inner, (to_it, past_it) in zip(parts, lines, strict=False)
            ]
        )


def _row(part: core.Part, first: str, rest: str) -> tuple[list[Row], Sequence[core.Part]]:
    """The row of a part with those of its numbers by path, and its own parts.

    `first` and `rest` draw the tree, before the name and before what comes below it.
    """
    label, tx, params, state = part.label, part.transform, part.params, part.state
    parts = tx.parts(params, state) if isinstance(tx, core.Transform) and tx.parts else []
    inner = tx
    if len(parts) == 1 and getattr(parts[0].transform, "spec", None) is None:
        # A factory that only chose the leaves for its rule: one part to the reader.
        inner, params, state, parts = parts[0].transform, parts[0].params, parts[0].state, []
    spec = getattr(tx, "spec", None)
    name = spec.name if spec is not None else core.show(tx)
    shown = f"{label}: {name}" if label and not label.isdigit() else name
    paths = tuple(_visible(params))
    below = rest + ("│    " if parts else "  ")
    numbers, values = ("", {}) if parts else _numbers(inner, spec, paths)
    rows = [Row(first, below, shown, numbers, paths, _bytes_by_dtype(state), values)]
    rows += _grouped(below, {path: part.why[path] for path in paths if path in part.why})
    for rule in [] if parts else rules_of(getattr(inner, "stage", None)):
        for name, source in rule.hypers.sources.items():
            if _by_path(source):
                said = _at(source, paths)
                rows += _grouped(below, {path: f"{name}={text}" for path, text in said.items()})
    return rows, parts


def _numbers(
    tx: Any, spec: core.Spec | None, paths: Sequence[str]
) -> tuple[str, Mapping[str, Mapping[str, str]] | None]:
    """The numbers and options of a part as a text, and each number at these leaves."""
    if not isinstance(tx, core.Transform):
        return "", None
    rules = rules_of(tx.stage)
    arguments = dict(spec.arguments) if spec is not None else {}
    sources = [(name, source) for r in rules for name, source in r.hypers.sources.items()]
    values = {name: _at(source, paths) for name, source in sources}
    if spec is not None and not rules:  # it works on whole trees, or does nothing
        texts = {
            name: core.show(arguments.get(name, spec.signature.parameters[name].default))
            for name in numbers_of(spec.factory)
        }
        values = {name: dict.fromkeys(paths, text) for name, text in texts.items()}
    else:
        texts = {}
    # A tuple of numbers is shown as one argument, not by the names of its elements.
    elements = {
        f"{name.removesuffix('s')}_{i}"
        for name, value in arguments.items()
        if isinstance(value, tuple | list)
        for i in range(len(value))
    }
    flags = [(k, core.show(value)) for r in rules for k, value in r.flags.items() if value]
    shown = {*texts, *(name for r in rules for name in (*r.hypers.sources, *r.flags))}
    pairs = [
        *texts.items(),
        *((name, _brief(source)) for name, source in sources if name not in elements),
        *flags,
        *((name, core.show(value)) for name, value in arguments.items() if name not in shown),
    ]
    return " ".join(f"{name}={text}" for name, text in pairs), values


def _at(source: Source, paths: Sequence[str]) -> Mapping[str, str]:
    """What a number is at these leaves, as a text."""
    if _by_path(source):
        return {path: repr(source.at(path)) for path in paths}
    return dict.fromkeys(paths, repr(source))


def _grouped(branch: str, said: Mapping[str, str]) -> Iterator[Row]:
    """A row for each text, with its leaves."""
    by_text: dict[str, list[str]] = {}
    for path, text in said.items():
        by_text.setdefault(text, []).append(path)
    for text, paths in by_text.items():
        yield Row(branch, branch, text, "", tuple(paths), Counter())


def _brief(source: Source) -> str:
    """The source in a few letters; the rows below show the values of one by path."""
    return f"{source.spec.name}(…)" if source.spec and _by_path(source) else repr(source)


def _by_path(source: Source) -> bool:
    return any(isinstance(node, ByPath) for node in source.walk())


def _visible(params: Params) -> list[str]:
    return gtree.array_paths(gtree.flatten(params))


def _bytes_by_dtype(state: State) -> Counter[str]:
    total: Counter[str] = Counter()
    for leaf in jax.tree.leaves(state):
        dtype = getattr(leaf, "dtype", None) or jnp.result_type(leaf)  # a Python number, too
        total[str(dtype)] += math.prod(np.shape(leaf)) * dtype.itemsize
    return total


def _bytes(n: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n} B"
