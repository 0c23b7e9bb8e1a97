"""The targets of gradx's performance, as data, and whether a run reached them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import markdown

Row = dict[str, Any]

# B/param; smaller amounts are scalars (a norm, bias corrections), which cost no bandwidth.
SCALARS = 0.01

MEASURES: dict[str, Callable[[Row], float]] = {
    "step time / Optax's": lambda row: row["ratios"]["optax"]["median"],
    "step time / least traffic at the axpy's rate": lambda row: row["bandwidth"]["median"],
    "temporaries, B/param": lambda row: row["competitors"]["gradx"]["temporaries"],
    "temporaries - Optax's, B/param": lambda row: (
        row["competitors"]["gradx"]["temporaries"] - row["competitors"]["optax"]["temporaries"]
    ),
    "temporaries - Optax's / 2, B/param": lambda row: (
        row["competitors"]["gradx"]["temporaries"] - row["competitors"]["optax"]["temporaries"] / 2
    ),
    "temporaries / Optax's": lambda row: (
        row["competitors"]["gradx"]["temporaries"] / row["competitors"]["optax"]["temporaries"]
    ),
    "mean step / Muon's": lambda row: row["competitors"]["gradx"]["of_muon"],
    "slowest step / mean": lambda row: (
        row["competitors"]["gradx"]["slowest"] / row["competitors"]["gradx"]["mean"]
    ),
    "time / as many operations one by one": lambda row: row["of_one"]["median"],
    "trace + lower + compile / Optax's": lambda row: row["ratios"]["optax"]["all"]["median"],
    "trace + lower / Optax's": lambda row: row["ratios"]["optax"]["trace"]["median"],
    "compile / Optax's": lambda row: row["ratios"]["optax"]["compile"]["median"],
}


@dataclass(frozen=True)
class Target:
    """A bar for the worst of some rows.

    Attributes:
      measure: a name in `MEASURES`.
      bar: the largest value that reaches the target.
      rows: a regular expression for the whole of ``group/name``.
      section: the section that has the rows.
    """

    measure: str
    bar: float
    rows: str
    section: str = "steps"


CLIPPED = r"chain/clip_by_global_norm \+ adamw"
COMPILED = rf"alias/adamw|{CLIPPED}"

EVERY = r".*"
MUON = r"matrix/muon"

TARGETS = [
    Target("step time / Optax's", 1.05, EVERY),
    Target("step time / Optax's", 0.5, MUON),
    Target("temporaries / Optax's", 0.5, MUON),
    Target("trace + lower + compile / Optax's", 0.2, MUON, section="compile"),
    # At least 85% of the rate of products.
    Target("time / as many operations one by one", 1 / 0.85, "products/muon", section="products"),
    Target("mean step / Muon's", 2.5, r"family/soap.*", section="family"),
    Target("slowest step / mean", 1.5, "family/soap staggered", section="family"),
    Target("temporaries - Optax's, B/param", SCALARS, EVERY),
    Target("temporaries - Optax's / 2, B/param", SCALARS, EVERY),
    Target("step time / Optax's", 0.6, r"wrapper/MultiSteps\(4\)"),
    Target("step time / Optax's", 0.75, r"alias/(adan|lamb|lars)|.*/schedule_free.*"),
    Target("step time / Optax's", 0.85, r"wrapper/apply_if_finite"),
    Target("step time / Optax's", 0.45, CLIPPED),
    Target("temporaries, B/param", 0.1, CLIPPED),
    Target("step time / Optax's", 0.5, r"alias/lion"),
    Target("temporaries, B/param", SCALARS, r"alias/lion"),
    Target("step time / Optax's", 0.75, r"alias/(adadelta|adabelief)"),
    Target("step time / least traffic at the axpy's rate", 1.7, r"alias/adamw"),
    Target("trace + lower / Optax's", 0.5, EVERY, section="compile"),
    Target("compile / Optax's", 1.0, COMPILED, section="compile"),
]


@dataclass(frozen=True)
class Outcome:
    """The values measured for a target; none if none of its rows was run."""

    target: Target
    values: dict[str, float]

    @property
    def missed(self) -> list[str]:
        return [name for name, value in self.values.items() if value > self.target.bar]

    @property
    def verdict(self) -> str:
        return "not measured" if not self.values else "no" if self.missed else "yes"


def judge(sections: dict[str, dict[str, Any]]) -> list[Outcome]:
    """The outcome of each target, from the sections of the default process."""
    return [
        Outcome(
            target,
            {
                row["name"]: MEASURES[target.measure](row)
                for row in sections.get(target.section, {}).get("rows", [])
                if re.fullmatch(target.rows, f"{row['group']}/{row['name']}")
                and ("Optax" not in target.measure or "optax" in row["ratios"])
            },
        )
        for target in TARGETS
    ]


def render(outcomes: list[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        target, values = outcome.target, outcome.values
        worst = max(values, key=values.__getitem__, default="")
        rows.append(
            [
                target.measure,
                f"{len(values)} rows, worst {worst}" if len(values) > 1 else worst,
                markdown.number(values.get(worst), 3),
                f"≤ {target.bar:.2f}",
                outcome.verdict,
            ]
        )
    missed = [
        f"* {o.target.measure}: "
        + ", ".join(f"{name} {o.values[name]:.3f}" for name in o.missed)
        + f" (bar {o.target.bar:.2f})"
        for o in outcomes
        if o.missed
    ]
    text = markdown.table(["measure", "of", "measured", "bar", "reached"], rows)
    return text + ("\n\nMissed:\n\n" + "\n".join(missed) if missed else "")
