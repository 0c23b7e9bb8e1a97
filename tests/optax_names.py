"""Every public name of the installed Optax, and what answers it in gradx.

``python tests/optax_names.py`` prints the tables; `test_optax_names.py` holds gradx to them.

* `rows`: what gradx has written itself, flat. Has it Optax's signature, or fields?
* `answers`: every name of Optax, nested in its namespaces. Who answers ``gradx.<path>``?
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import optax

import gradx
from gradx import contract, core
from gradx.core.show import is_dtype

# Where Optax exports what belongs into gradx, and where it stands there: flat, but for what may
# still change. The top comes last, as it deprecates some names.
HOMES: dict[ModuleType, ModuleType] = {
    optax.transforms: gradx,
    optax.schedules: gradx,
    optax.contrib: gradx,
    optax.experimental.aggregating: gradx.experimental.aggregating,
    optax: gradx,
}


def own(module: ModuleType) -> set[str]:
    """What a module of gradx has itself, of all that it answers."""
    made = {n for n, made in vars(module).items() if not isinstance(made, ModuleType)}
    return made & set(module.__all__)


OWN = sorted(own(gradx))

# Differences that are meant: `name.argument` to the reason.
EXCEPTIONS = {
    "freeze.inner": "the optimizer of the other leaves stands where that of `masked` does",
}

# Who may answer a name: what gradx has written, Optax's object, or a mirror.
ANSWERED = {"gradx", "Optax", "a namespace"}

# Functions of Optax without a return annotation, read: none of them makes a transformation.
MAKES_NONE = {
    *["base_hungarian_algorithm", "hungarian_algorithm", "make_fenchel_young_loss"],
    *["matrix_inverse_pth_root", "sigmoid_binary_cross_entropy", "tree_allclose"],
    *["tree_batch_shape", "tree_bias_correction", "tree_update_infinity_moment"],
    *["tree_update_moment", "tree_update_moment_per_elem_norm", "tree_where"],
}

# Functions are compared by what they give: the name of an argument to what to call it with.
SAMPLES = {"clip_value_fn": (jnp.float32(3.0),), "decay_rate_fn": (jnp.int32(3), 0.8)}


@dataclass(frozen=True)
class Row:
    """A name of Optax that gradx has itself, or should have.

    Attributes:
      name: the name.
      kind: what it is there.
      problem: what is wrong with it in gradx; "" if nothing is.
      exceptions: the entries of `EXCEPTIONS` that were needed.
    """

    name: str
    kind: str
    problem: str = ""
    exceptions: tuple[str, ...] = ()


def rows() -> list[Row]:
    """The names that gradx has itself, or should have, since they make transformations."""
    return [
        row(name, made, home)
        for name, (made, home) in sorted(exported().items(), key=_by_name)
        if name in own(home) or (not isinstance(made, ModuleType) and is_ours_to_write(made))
    ]


def _by_name(item: tuple[str, Any]) -> tuple[str, str]:
    return item[0].lower(), item[0]


def exported() -> dict[str, tuple[Any, ModuleType]]:
    """Every name of these with what it stands for, and the module of gradx where it should be."""
    found: dict[str, tuple[Any, ModuleType]] = {}
    for module, home in HOMES.items():
        for name, made in names(module).items():
            found.setdefault(name, (made, home))
    return found


def names(module: ModuleType) -> dict[str, Any]:
    """The public names of a module of Optax. What it imports from elsewhere is not among them."""
    listed = getattr(module, "__all__", ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = {n: getattr(module, n) for n in {*dir(module), *listed} if not n.startswith("_")}
    if not is_namespace(module):  # a private module with a public name, as `aggregating` has
        return {
            n: made
            for n, made in found.items()
            if getattr(made, "__module__", "") == module.__name__
        }
    return {
        n: made
        for n, made in found.items()
        if not isinstance(made, ModuleType) or n in listed or is_namespace(made)
    }


def is_namespace(module: ModuleType) -> bool:
    first, *path = module.__name__.split(".")
    return first == "optax" and not any(part.startswith("_") for part in path)


def row(name: str, theirs: Any, home: ModuleType = gradx) -> Row:
    kind = kind_of(name, theirs)
    if name not in own(home):
        return Row(name, kind, "missing")
    problems, exceptions = [], []
    for where, problem in differences(kind, getattr(home, name), theirs):
        key = f"{name}.{where}"
        if key in EXCEPTIONS:
            exceptions.append(key)
        else:
            problems.append(problem)
    return Row(name, kind, "; ".join(problems), tuple(exceptions))


# ---------------------------------------------------------------- who answers


def answers() -> dict[str, str]:
    """Every public name of Optax, nested, such as ``losses.l2_loss``, and who answers it."""
    ours = {id(t): getattr(home, n) for n, (t, home) in exported().items() if n in own(home)}
    return {path: answer(path, made, ours) for path, made in walk(optax, "")}


def walk(module: ModuleType, path: str) -> Iterator[tuple[str, Any]]:
    for name, made in sorted(names(module).items()):
        yield path + name, made
        if isinstance(made, ModuleType):
            yield from walk(made, f"{path}{name}.")


def answer(path: str, theirs: Any, ours: dict[int, Any]) -> str:
    try:
        found = functools.reduce(getattr, path.split("."), gradx)
    except AttributeError:
        return "nothing"
    if isinstance(theirs, ModuleType):
        return "a namespace" if found.__name__ == f"gradx.{path}" else "another module"
    if id(theirs) in ours:
        return "gradx" if found is ours[id(theirs)] else "not gradx's, which there is"
    if found is not theirs:
        return "something else"
    return "Optax's transformation" if is_ours_to_write(theirs) else "Optax"


def is_ours_to_write(made: Any) -> bool:
    """Whether it is, makes, or is the state of, a transformation or a schedule."""
    if inspect.isclass(made):
        is_state = issubclass(made, tuple) and made.__name__.endswith("State")
        return is_state or issubclass(made, optax.GradientTransformation)
    function = inspect.unwrap(getattr(made, "func", made))  # jitted, or `functools.partial`
    if not inspect.isfunction(function):
        return False
    said = inspect.signature(function).return_annotation
    if said is inspect.Signature.empty:
        return function.__name__ not in MAKES_NONE
    return said == optax.Schedule or "GradientTransformation" in str(said) or "Aggreg" in str(said)


def kind_of(name: str, made: Any) -> str:
    if isinstance(made, ModuleType):
        return "package"
    if made in [getattr(contract, n) for n in contract.__all__ if n != name]:
        return "contract type"  # such as ClipState, which is EmptyState
    if name in contract.__all__ and not inspect.isfunction(made):
        return "contract type"
    if not inspect.isclass(made):
        return "function"
    if hasattr(made, "_fields"):
        return "state" if name.endswith("State") else "named tuple"
    return "class"


def differences(kind: str, ours: Any, theirs: Any) -> Iterator[tuple[str, str]]:
    """What differs, each with the argument or field that it is about."""
    if kind == "contract type":
        if ours is not theirs and ours != theirs:
            yield "", "not Optax's own object"
    elif kind in ("state", "named tuple"):
        if ours._fields != theirs._fields:
            yield "_fields", f"has the fields {ours._fields}, in Optax {theirs._fields}"
        elif ours._field_defaults != theirs._field_defaults:
            yield "_fields", f"has the defaults {ours._field_defaults}"
    else:
        yield from signatures(
            inspect.signature(ours), by_new_names(inspect.signature(theirs), ours)
        )
        if kind == "class":
            lacking = [n for n in dir(theirs) if n[0] != "_" and not hasattr(ours, n)]
            yield from ((n, f"lacks the method {n}") for n in lacking)


def by_new_names(theirs: inspect.Signature, ours: Any) -> inspect.Signature:
    """Optax's signature, with the new names of arguments that gradx takes by old names, too."""
    renamed = getattr(ours, "renamed", {})
    named = [
        p.replace(name=renamed.get(p.name, p.name))
        for p in theirs.parameters.values()
        if renamed.get(p.name) not in theirs.parameters
    ]
    return theirs.replace(parameters=named)


def signatures(ours: inspect.Signature, theirs: inspect.Signature) -> Iterator[tuple[str, str]]:
    """gradx may append arguments that are keyword-only; nothing else may differ."""
    mine, wanted = ours.parameters, theirs.parameters
    for name, parameter in mine.items():
        if name not in wanted and parameter.kind is not parameter.KEYWORD_ONLY:
            yield name, f"{name} is not in Optax, and not keyword-only"
    for name in wanted:
        if name not in mine:
            yield name, f"lacks {name}"
    shared = [name for name in wanted if name in mine]
    for name in shared:
        kinds = mine[name].kind.description, wanted[name].kind.description
        if kinds[0] != kinds[1]:
            yield name, f"{name} is {kinds[0]}, in Optax {kinds[1]}"
        defaults = mine[name].default, wanted[name].default
        if not same(name, *defaults):
            yield name, f"{name} is {_shown(defaults[0])}, in Optax {_shown(defaults[1])}"
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    order = [n for n in shared if keyword_only not in (mine[n].kind, wanted[n].kind)]
    found = [n for n in mine if n in order]
    if found != order:
        yield "", f"has the order {found}, in Optax {order}"


def same(name: str, ours: Any, theirs: Any) -> bool:
    """Values by value, functions by what they give, transformations by their factory's name."""
    if isinstance(ours, gradx.Transform) and ours.spec is not None:
        return f"optax.{ours.spec.name}(…)" == core.show(theirs)
    if name in SAMPLES:
        mine, wanted = ours(*SAMPLES[name]), theirs(*SAMPLES[name])
        return bool(jnp.allclose(mine, wanted, rtol=1e-6))
    if is_dtype(ours) and is_dtype(theirs):
        return core.show(ours) == core.show(theirs)
    plain = int | float | str | tuple
    alike = isinstance(ours, bool) == isinstance(theirs, bool)
    return ours is theirs or (isinstance(ours, plain) and alike and bool(ours == theirs))


def _shown(default: Any) -> str:
    return "required" if default is inspect.Parameter.empty else core.show(default)


def main() -> int:
    table = [("name", "in Optax a", "gradx")]
    table += [(found.name, found.kind, found.problem or "ok") for found in rows()]
    widths = [max(len(line[i]) for line in table) for i in range(2)]
    for name, kind, said in table:
        print(f"{name:{widths[0]}}  {kind:{widths[1]}}  {said}")
    problems = [found for found in rows() if found.problem]
    answered = answers()
    print(
        f"\nOptax {optax.__version__}: gradx has {len(table) - 1} of its names itself; "
        f"{len(problems)} are missing or differ."
    )
    print(f"\nPublic names of Optax, nested: {len(answered)}. Who answers them:")
    for who in sorted({"nothing", "Optax's transformation", *ANSWERED, *answered.values()}):
        paths = [path for path, by in answered.items() if by == who]
        print(f"  {who}: {len(paths)}", *([] if who in ANSWERED else paths))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
