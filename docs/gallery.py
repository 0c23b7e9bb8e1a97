"""The table of all optimizers: what each is, what it keeps and needs, and the rate to begin with.

The docstring says what an optimizer is, calls of it show its bytes and needs, and gallery.toml has
the rest. `python docs/gallery.py` prints the tables.
"""

from __future__ import annotations

import inspect
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import gradx
from gradx import core

DATA = Path(__file__).with_suffix(".toml")

FAMILIES = {
    "first_order": "First order",
    "sign": "Signs",
    "layerwise": "Relative to each layer",
    "averaging": "Averages instead of a schedule",
    "tuning_free": "Without a learning rate",
    "matrix": "Matrices",
    "second_order": "Second order",
}

HEAD = """\
| optimizer | what it is, and when to use it | bytes | needs | rate |
| --- | --- | --: | --- | --- |
"""

# Required arguments beside the learning rate, by name.
GIVEN: dict[str, Any] = {
    "base_optimizer": gradx.sgd(0.1),
    "inner": gradx.scale_by_adam(),
    "l2_norm_clip": 1.0,
    "noise_multiplier": 1.0,
    "key": 0,
    "optimism": 0.1,
}


def shapes(n: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A matrix and a vector, as shapes: nothing is calculated."""
    sides = {"kernel": (n, n), "bias": (n,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sides.items()}


def optimizers() -> dict[str, str]:
    """Every factory of a complete optimizer, with its family."""
    found = {}
    for name, factory in core.REGISTRY.items():
        home = getattr(factory, "__module__", "").split(".")
        arguments = set(inspect.signature(factory).parameters)
        complete = arguments & {"learning_rate", "max_learning_rate"}
        if complete and home[:2] == ["gradx", "optimizers"] and not name.startswith("scale_by_"):
            found[name] = home[2]
    return found


def made(name: str) -> Any:
    """The optimizer with its defaults."""
    arguments = inspect.signature(getattr(gradx, name)).parameters.values()
    required = {a.name for a in arguments if a.default is a.empty or a.name == "key"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return getattr(gradx, name)(**{a: GIVEN.get(a, 0.1) for a in required})


def state_bytes(tx: Any) -> str:
    """The bytes of its state for each parameter; almost all parameters are in a large matrix."""
    params = shapes(1024)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return f"{gradx.state_bytes(jax.eval_shape(tx.init, params)) / size:.1f}".removesuffix(".0")


def needs(tx: Any) -> Iterator[str]:
    """What `update` asks for beside gradients and state, found by leaving it out."""
    params = shapes(8)
    state = jax.eval_shape(tx.init, params)
    for with_params in (False, True):
        try:
            if with_params:
                jax.eval_shape(tx.update, params, state, params)
            else:
                jax.eval_shape(tx.update, params, state)
            return
        except (TypeError, ValueError) as missing:
            wanted = str(missing).partition(": call update")[0]
        if not with_params and "needs the parameters" in wanted:
            yield "parameters"
        elif with_params:
            yield from (f"`{name}`" for name in re.findall(r"'(\w+)'", wanted))


def paper(doc: str) -> str:
    """The first work that a docstring refers to: its authors, with a link if it has one."""
    reference = " ".join(doc.partition("\nReference: ")[2].split("\n\n")[0].split())
    first = reference.split(";")[0]
    authors = re.split(r", (?:\*|https?:)", first)[0]
    link, year = re.search(r"https?://[^\s,]+", first), re.search(r"\b(?:19|20)\d\d\b", first)
    if link:
        return f"[{authors}]({link[0].rstrip('.')})"
    return f"{authors}, {year[0]}" if year else authors


def row(name: str, entry: dict[str, str]) -> str:
    tx, doc = made(name), inspect.getdoc(getattr(gradx, name)) or ""
    what = " ".join(doc.split("\n\n")[0].split())
    wanted = ", ".join([*needs(tx), *([entry["needs"]] if "needs" in entry else [])])
    cells = [
        f"`{name}`<br>{paper(doc)}",
        f"{what} *{entry['when']}*" if "when" in entry else what,
        *[state_bytes(tx), wanted, entry.get("rate", "")],
    ]
    return f"| {' | '.join(cells)} |\n"


def page() -> str:
    """A table for each family, in the order of gallery.toml."""
    entries = tomllib.loads(DATA.read_text())
    families = optimizers()
    assert set(entries) == set(families), f"gallery.toml: {set(entries) ^ set(families)}"
    tables = []
    for family, heading in FAMILIES.items():
        rows = [row(name, entries[name]) for name in entries if families[name] == family]
        tables.append(f"## {heading}\n\n{HEAD}{''.join(rows)}")
    return "\n".join(tables)


if __name__ == "__main__":
    print(page())
