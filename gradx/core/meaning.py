"""What an argument means, said once: in its annotation, or by its name in `vocabulary`.

A number has a range, a symbol and a sentence, an option a sentence. `recorded` uses them to check
the numbers of a call, and to write the entries under ``Args:`` (see `docstrings`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import jax

from gradx.core.annotations import check_known
from gradx.core.kept import kept
from gradx.core.ranges import ANY, as_float, check_constant, check_schedule, is_real, no_number


class Meaning:
    """What an argument is for, as metadata of its annotation: `Number` or `Option`."""

    sentence: str

    def over(self, general: Meaning | None) -> Meaning:
        """This meaning, completed by a more general one of the same kind."""
        return self

    def formula(self, default: Any) -> str:
        """What follows the sentence: symbol, range and default."""
        return ""

    def told(self, own: str, default: Any) -> str:
        """The entry under ``Args:``; `own` are the docstring's own words (see `docstrings`)."""
        if self.sentence and (not own or own[0].isupper()):
            own = f"{self.sentence}. {own}".strip()
        formula = self.formula(default)
        if not own or not formula:
            return own or f"{formula}."
        end = re.search(r"[.;]( |$)", own)
        at = len(own) if end is None else end.start()
        return f"{own[:at]}; {formula}{own[at:]}"


@dataclass(frozen=True)
class Option(Meaning):
    """What an option means: ``Annotated[bool, Option("look one step ahead")]``.

    Attributes:
      sentence: plain words, without a full stop.
    """

    sentence: str


@dataclass(frozen=True)
class Number(Meaning):
    r"""What a number means: ``Annotated[Hyper, Number("[0, inf)", r"\eta", "the step size")]``.

    Attributes:
      interval: its range; without it that of `vocabulary`, or any number.
      symbol: its symbol in the formulas, in LaTeX.
      sentence: plain words, without a full stop.
      fixed: it decides shapes, so it is never injected or traced.
    """

    interval: str = ""
    symbol: str = ""
    sentence: str = ""
    fixed: bool = False

    def formula(self, default: Any) -> str:
        words = rf"\({self.symbol}\)" if self.symbol else ""
        if self.interval not in ("", ANY):
            words = f"{words} in {self.interval}".strip()
        number = isinstance(default, int | float) and not isinstance(default, bool)
        return f"{words}, {default!r} by default" if number and words else words

    def over(self, general: Meaning | None) -> Meaning:
        """This one, with what it leaves open taken from a more general one."""
        said = {name: value for name, value in vars(self).items() if value}
        return replace(general, **said) if isinstance(general, Number) else self

    def taken(self, value: Any, name: str, where: str, plain: bool) -> Any:
        """Checks a number as far as it is known now, and returns the one to use.

        Live values remember the range. `plain` is for arguments that take only a number.
        """
        if hasattr(value, "within") and not plain:
            return value.within(self.interval, name, where)
        if self.fixed:
            check_known(name, value, where)
        if plain or is_real(value):
            check_constant(value, self.interval, name, where)
        elif callable(value):
            check_schedule(value, name, where)
        else:
            raise no_number(value, name, where)
        if self.fixed:
            return float(value)
        return constant_of(value) if plain else value


def constant_of(value: Any) -> Any:
    """The number to calculate with: a Python float, or an array that nobody else has."""
    if isinstance(value, jax.core.Tracer):
        return as_float(value)
    # An array stays an argument of the program: a loop over arrays compiles once.
    return as_float(kept(value)) if isinstance(value, jax.Array) else float(value)
