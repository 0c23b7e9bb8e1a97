"""What the usual arguments mean, by name: the range, symbol and sentence of `b1`, `eps`, ….

A factory that means something else by a name says so in its annotation (see `meaning`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

import jax

from gradx.core.annotations import members, metadata, signature
from gradx.core.meaning import Meaning, Number, Option
from gradx.core.ranges import ANY

VOCABULARY: dict[str, Meaning] = {
    # Step size and weight decay.
    "learning_rate": Number("[0, inf)", r"\eta", "the step size"),
    "weight_decay": Number("[0, inf)", r"\lambda", "how strongly parameters are drawn to zero"),
    "mask": Option("which leaves decay (see `add_decayed_weights`)"),
    "weight_decay_mask": Option("which leaves decay (see `add_decayed_weights`)"),
    # Averages.
    "b1": Number("[0, 1)", r"\beta_1", "how much of the average of gradients is kept each step"),
    "b2": Number("[0, 1)", r"\beta_2", "how much of the average of squares is kept each step"),
    "b3": Number(
        "[0, 1)", r"\beta_3", "how much of a slow average is kept each step, such as 0.9999"
    ),
    "alpha": Number("[0, inf)", r"\alpha", "the weight of the slow average"),
    "beta": Number("[0, 1)", r"\beta", "how much of the average of gradients is kept each step"),
    "decay": Number("[0, 1)", r"\beta", "how much of the average is kept each step"),
    "momentum": Number(
        "[0, 1)", r"\beta", "how much of the average of gradients is kept each step"
    ),
    "rho": Number("[0, 1)", r"\rho", "how much of the average is kept each step"),
    "nesterov": Option("look one step ahead"),
    "mu_dtype": Option(
        "the dtype to keep the average of gradients in; by default the parameter's, at least "
        "float32"
    ),
    # Divisions.
    "eps": Number("[0, inf)", r"\epsilon", "a small number that keeps the division finite"),
    "eps_root": Number("[0, inf)", r"\epsilon_\mathrm{root}", "a small number inside the root"),
    # Bounds.
    "max_norm": Number("(0, inf]", "c", "the largest norm"),
    "max_delta": Number("(0, inf]", "c", "the largest absolute value"),
    "threshold": Number("(0, inf]", "c", "the largest value"),
    "clipping": Number("(0, inf]", "c", "the largest ratio of the norms"),
    # Matrices.
    "axes": Option(
        "which leaves are matrices, and which of their axes are rows and columns: a `MatrixAxes`, "
        "a tree of them with None for other leaves, a function that makes one from the parameters, "
        "or `by_path`"
    ),
    "fallback": Option("the optimizer of the other leaves"),
    "max_precond_dim": Option("the longest side that has a factor, a whole number from 0 on"),
    "chunk": Option("how many matrices to work on at a time, which bounds the memory"),
    "share": Option(
        "which devices share the matrices: ``Share(mesh, axis)``, False for none, or by default "
        "all of the mesh in scope"
    ),
    "ns_coeffs": Option("the coefficients of the Newton–Schulz steps (see `scale_by_muon`)"),
    "ns_steps": Option("how many Newton–Schulz steps (see `scale_by_muon`)"),
    "dtype": Option("the dtype of the factors of the products (see `scale_by_muon`)"),
    "gram": Option("whether the steps work on the Gram matrix (see `scale_by_muon`)"),
    "adaptive": Option("let the step grow with the gradient (see `scale_by_muon`)"),
    "preconditioning": Option("what the matrix is divided by first (see `scale_by_muon`)"),
    "precondition_frequency": Option("the steps from one renewal of the bases to the next"),
    "staggered": Option(
        "renew a part of the bases in every step, so that no step takes longer than others"
    ),
    "shampoo_beta": Number(
        "[0, 1)", r"\beta", "how much of the factors is kept each step; by default `b2`"
    ),
    "rtol": Number(
        "[0, 1)", r"\rho", "the share of all below which a direction counts as rounding"
    ),
    # Schedules.
    "init_value": Number(ANY, "I", "the value at the start"),
    "peak_value": Number(ANY, "P", "the highest value"),
    "end_value": Number(ANY, "E", "the value at the end"),
    # The run.
    "key": Option("a random key, or the seed of one"),
    "axis_name": Option(
        "the mapped axis over which leaves are sharded, inside `shard_map` or `pmap`, or several, "
        "or `sharded`; without it each device measures its own part of a leaf"
    ),
    "accumulator_dtype": Option(
        "the dtype to keep the sum or average in; by default the parameter's, at least float32"
    ),
}

# The names that have their range in any rule, also in one that is written elsewhere.
EVERYWHERE = (
    *("learning_rate", "weight_decay", "eps", "eps_root", "decay", "momentum", "b1", "b2", "rho"),
    *("max_norm", "max_delta", "threshold", "clipping"),
)
RANGES = {
    name: number.interval
    for name, number in VOCABULARY.items()
    if isinstance(number, Number) and name in EVERYWHERE
}


def meanings(factory: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Meaning]:
    """The meanings of a factory's arguments, by name.

    A name alone has a meaning only in gradx; in other packages only annotations count.
    """
    ours = factory.__module__.partition(".")[0] == "gradx"
    found: dict[str, Meaning] = {}
    for name, parameter in parameters.items():
        general = VOCABULARY.get(name) if ours else None
        own = [m for m in metadata(parameter.annotation) if isinstance(m, Meaning)]
        is_number = float in members(parameter.annotation)
        if own:
            meaning = own[0].over(general)
            for narrower in own[1:]:
                meaning = narrower.over(meaning)
            found[name] = meaning
        elif general and isinstance(general, Number) == is_number:
            found[name] = general
    return found


class Taken(NamedTuple):
    """How a factory takes a number, or a tuple of them: what it means, and what may be given."""

    number: Number
    sources: bool  # also schedules, live values, …
    none: bool
    each: bool = False  # of a tuple


_PLAIN = {float, int, jax.Array, types.NoneType}


@functools.lru_cache(maxsize=1024)
def numbers_of(factory: Callable[..., Any]) -> dict[str, Taken]:
    """The numbers of a factory that have a range, by name."""
    found = {}
    parameters = signature(factory).parameters
    known = meanings(factory, parameters)
    for name, parameter in parameters.items():
        kinds = members(parameter.annotation)
        optional = types.NoneType in kinds or parameter.default is None
        if isinstance(number := known.get(name), Number) and number.interval:
            found[name] = Taken(number, not set(kinds) <= _PLAIN, optional)
        for part in (p for kind in kinds if get_origin(kind) is tuple for p in get_args(kind)):
            for number in metadata(part):
                if isinstance(number, Number) and number.interval:
                    sources = not set(members(part)) <= _PLAIN
                    found[name] = Taken(number, sources, optional, each=True)
    return found


def checked_numbers(
    factory: Callable[..., Any], arguments: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The numbers of a call, checked, to use instead of those that were given.

    Raises:
      ValueError: a number is out of its range.
    """
    found: dict[str, Any] = {}
    for name, (number, sources, none, each) in numbers_of(factory).items():
        if name not in arguments or (none and arguments[name] is None):
            continue
        value = arguments[name]
        if not each:
            found[name] = number.taken(value, name, where, plain=not sources)
        elif isinstance(value, list | tuple):
            found[name] = tuple(
                number.taken(v, f"{name}[{i}]", where, plain=not sources)
                for i, v in enumerate(value)
            )
    return found
