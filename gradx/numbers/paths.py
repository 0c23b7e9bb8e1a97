"""Numbers, masks and labels chosen by the paths of the leaves."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from gradx import core
from gradx.core import trees as gtree
from gradx.numbers.sources import Source, within

__all__ = ["by_path"]


@dataclass(frozen=True, eq=False, repr=False)
class ByPath(Source):
    """Values by pattern: anything (a label, a bool); numbers, if a rule takes it."""

    rules: Mapping[str, Any]
    default: Any
    optional: bool | Collection[str]

    @property
    def parts(self) -> Sequence[Any]:
        return [*self.rules.values(), *([] if self.default is REQUIRED else [self.default])]

    def pattern_at(self, path: str) -> str | None:
        return next((p for p in self.rules if re.search(p, path)), None)

    def pick(self, path: str) -> Any:
        pattern = self.pattern_at(path)
        return self.default if pattern is None else self.rules[pattern]

    def at(self, path: str) -> Source:
        picked: Source = self.pick(path)
        return picked.at(path)

    def mapped(self, change: Callable[[Any, str], Any]) -> ByPath:
        """With every value changed by a function of it and its pattern, or `"default"`."""
        rules = {pattern: change(v, pattern) for pattern, v in self.rules.items()}
        default = self.default if self.default is REQUIRED else change(self.default, "default")
        return replace(self, rules=rules, default=default)

    def within(self, interval: str, name: str, where: str) -> ByPath:
        return self.mapped(lambda v, at: within(v, interval, f"{name}[{at}]", where))

    def check(self, paths: Sequence[str], where: str) -> None:
        """Raises ValueError for a pattern that claims no leaf, and for a leaf without a value."""
        claimed = {self.pattern_at(path) for path in paths}
        beside = {self.pattern_at(path) for path in _BESIDE.get()}
        idle = [p for p in self.rules if p not in claimed | beside and not self._may_idle(p)]
        if idle:
            raise ValueError(
                f"{where}: the pattern {idle[0]!r} claims no leaf: "
                f"{self._why_idle(idle[0], paths)} "
                f"If that is meant, say optional=[{idle[0]!r}]."
            )
        if None in claimed and self.default is REQUIRED:
            lost = [path for path in paths if self.pattern_at(path) is None]
            raise ValueError(
                f"{where}: no pattern matches {gtree.listed(lost)} and there is no "
                f"default. Give default=…, or a pattern for them."
            )

    def _why_idle(self, pattern: str, paths: Sequence[str]) -> str:
        claimed: dict[Any, list[str]] = {}
        for path in paths:
            if re.search(pattern, path):
                claimed.setdefault(self.pattern_at(path), []).append(path)
        if not claimed:
            return f"it is found in none of the paths {gtree.listed(list(paths), 20)}."
        told = [f"{earlier!r} claims {gtree.listed(of)}" for earlier, of in claimed.items()]
        return f"the first match wins, and {', '.join(told)}. Put {pattern!r} before it."

    def _may_idle(self, pattern: str) -> bool:
        return self.optional if isinstance(self.optional, bool) else pattern in self.optional

    def __call__(self, tree: Any, where: str = "by_path") -> Any:
        """The value at every leaf, as a tree: a mask or labels for anything that takes these."""
        flat = gtree.flatten(tree)
        paths = gtree.array_paths(flat)
        if paths:
            self.check(paths, where)
        pairs = zip(flat.paths, flat.values, strict=True)
        return flat.unflatten([None if x is None else self.pick(path) for path, x in pairs])


REQUIRED = object()

# The leaves of all parts of a split optimizer: a pattern may be for those of another part only.
_BESIDE: ContextVar[Collection[str]] = ContextVar("paths beside", default=())


@contextlib.contextmanager
def beside(paths: Collection[str]) -> Iterator[None]:
    """In this block a pattern of `by_path` may also be for one of these leaves only."""
    token = _BESIDE.set(paths)
    try:
        yield
    finally:
        _BESIDE.reset(token)


@core.recorded
def by_path(
    rules: Mapping[str, Any],
    default: Any = REQUIRED,
    *,
    optional: bool | Collection[str] = False,
) -> ByPath:
    """Chooses a value for each leaf by its path.

    Paths are the keys joined by ``/``, as in ``encoder/layers_0/attn/kernel`` (for Flax NNX
    without the last ``value``). Each pattern is a regular expression that is *searched* in the
    path; the first pattern that is found decides.

    Args:
      rules: pattern to value. Where a rule takes a number, a value is a number or any other
        source (a schedule, `tunable`, `from_call`, `scaled`); as a mask it is a bool, as a label
        for `partition` a string.
      default: the value of the leaves that no pattern matches; without it such a leaf is an error.
      optional: patterns that may claim no leaf, or True for all of them.

    Raises:
      ValueError: a pattern is no regular expression (at construction), claims no leaf, or a leaf
        has no value (at `init`).

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> tx = gradx.sgd(gradx.by_path({"bias": 1.0}, default=0.1))
      >>> params = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates
      {'bias': Array([-1.], dtype=float32), 'kernel': Array([-0.1], dtype=float32)}

    It is also a function of a tree. Use it anywhere a mask or labels are accepted:

      >>> gradx.by_path({"bias": False}, default=True)(params)
      {'bias': False, 'kernel': True}
    """
    for pattern in rules:
        check_pattern(pattern, "by_path")
    check_optional(optional, rules, "by_path")
    return ByPath(dict(rules), default, optional)


def check_pattern(pattern: Any, where: str) -> None:
    """Raises ValueError for what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{where}: {pattern!r} is not a regular expression: {error}.") from error


def check_optional(optional: Any, names: Collection[Any], where: str) -> None:
    """Raises ValueError unless `optional` is a bool or names some of the patterns or labels."""
    if isinstance(optional, bool):
        return
    known = list(names)
    if isinstance(optional, str) or any(
        not isinstance(name, Hashable) or name not in known for name in optional
    ):
        raise ValueError(
            f"{where}: optional must be a list of some of {known}, or True; got "
            f"{core.show(optional)}."
        )
