"""Every name that the installed Optax exports, and what gradx has under it.

``python tests/optax_names.py`` prints the table; `test_optax_names.py` holds gradx to it. A name of
Optax is either in gradx, flat and with the same signature or fields, or stands in `LEFT_OUT`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import optax
import optax.contrib
import optax.schedules
import optax.transforms

import gradx
from gradx import contract, core
from gradx.show import is_dtype

# Where Optax keeps what belongs into gradx. The top comes last, as it deprecates some names.
MODULES = [optax.transforms, optax.schedules, optax.contrib, optax]

# What gradx does not have, by reason: names, separated by spaces.
LEFT_OUT = {
    "its names are here, flat": "contrib schedules transforms",
    "a package of functions that are no gradient transformations": (
        "assignment experimental losses microbatching perturbations projections second_order"
    ),
    "a package of functions of trees": "tree tree_utils",
    "a loss": (
        "convex_kl_divergence cosine_distance cosine_similarity ctc_loss "
        "ctc_loss_with_forward_probs generalized_kl_divergence hinge_loss huber_loss "
        "kl_divergence l2_loss log_cosh ntxent safe_softmax_cross_entropy "
        "sigmoid_binary_cross_entropy sigmoid_focal_loss smooth_labels softmax_cross_entropy "
        "softmax_cross_entropy_with_integer_labels squared_error"
    ),
    "a function for inside a model or a loss": (
        "multi_normal safe_norm safe_root_mean_squares scale_gradient"
    ),
    "a helper in linear algebra": ("matrix_inverse_pth_root nnls power_iteration"),
    "a helper on trees; gradx writes rules for one array": (
        "bias_correction update_infinity_moment update_moment update_moment_per_elem_norm"
    ),
    "calls a loss in parts": "microbatch",
}
REASONS = {name: reason for reason, names in LEFT_OUT.items() for name in names.split()}

# Differences that are meant: `name.argument` to the reason.
EXCEPTIONS = {
    "freeze.inner": "the optimizer of the other leaves stands where that of `masked` does",
}

# Functions are compared by what they give: the name of an argument to what to call it with.
SAMPLES = {"clip_value_fn": (jnp.float32(3.0),), "decay_rate_fn": (jnp.int32(3), 0.8)}


@dataclass(frozen=True)
class Row:
    """A name of Optax.

    Attributes:
      name: the name.
      kind: what it is there.
      problem: what is wrong with it in gradx; "" if nothing is.
      left_out: why gradx does not have it; "" if it has to.
      exceptions: the entries of `EXCEPTIONS` that were needed.
    """

    name: str
    kind: str
    problem: str = ""
    left_out: str = ""
    exceptions: tuple[str, ...] = ()


def rows() -> list[Row]:
    return [row(name, made) for name, made in sorted(exported().items(), key=_by_name)]


def _by_name(item: tuple[str, Any]) -> tuple[str, str]:
    return item[0].lower(), item[0]


def exported() -> dict[str, Any]:
    """Every public name of Optax with what it stands for."""
    found: dict[str, Any] = {}
    for module in MODULES:
        for name in {*dir(module), *getattr(module, "__all__", ())}:
            if not name.startswith("_") and name not in found:
                found[name] = getattr(module, name)
    return found


def row(name: str, theirs: Any) -> Row:
    kind = kind_of(name, theirs)
    if name in REASONS:
        return Row(name, kind, left_out=REASONS[name])
    if not hasattr(gradx, name):
        return Row(name, kind, "missing")
    problems, exceptions = [], []
    for where, problem in differences(kind, getattr(gradx, name), theirs):
        key = f"{name}.{where}"
        if key in EXCEPTIONS:
            exceptions.append(key)
        else:
            problems.append(problem)
    return Row(name, kind, "; ".join(problems), exceptions=tuple(exceptions))


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
        yield from signatures(inspect.signature(ours), inspect.signature(theirs))
        if kind == "class":
            lacking = [n for n in dir(theirs) if n[0] != "_" and not hasattr(ours, n)]
            yield from ((n, f"lacks the method {n}") for n in lacking)


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
    for found in rows():
        said = found.left_out and f"left out: {found.left_out}"
        table.append((found.name, found.kind, found.problem or said or "ok"))
    widths = [max(len(line[i]) for line in table) for i in range(2)]
    for name, kind, said in table:
        print(f"{name:{widths[0]}}  {kind:{widths[1]}}  {said}")
    problems = [found for found in rows() if found.problem]
    wanted = [found for found in rows() if not found.left_out]
    missing = [found.name for found in problems if found.problem == "missing"]
    print(
        f"\nOptax {optax.__version__}: {len(wanted)} names that belong into gradx, "
        f"{len(missing)} missing, {len(problems) - len(missing)} that differ."
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
