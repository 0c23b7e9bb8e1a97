"""The picture of all schedules: `python docs/schedules.py` draws `pictures/schedules.svg`.

Each factory has a panel, with one curve or a few that differ in one argument. The file describes
what it shows in words, and a test compares these with the schedules of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gradx
from gradx.schedules.schedule_fn import ScheduleFn, borders_of

FILE = Path(__file__).parent / "pictures/schedules.svg"
STEPS = 1000
COLUMNS = 4

# Lines of middle lightness can be seen on white and on black. The colours, from Tol's
# schemes, differ for the colour-blind too, and the dashes differ in print.
GREY = "#808080"
LINES = [("#4477aa", "-"), ("#ee6677", "--"), ("#228833", ":"), ("#aa4499", "-.")]

WARMUP = gradx.warmup_constant_schedule(0.0, 1.0, 100)

# The name of a factory, and its curves, by the argument in which they differ.
PANELS: dict[str, Mapping[str, ScheduleFn]] = {
    "constant_schedule": {"": gradx.constant_schedule(1.0)},
    "linear_schedule": {"": gradx.linear_schedule(1.0, 0.1, 800)},
    "polynomial_schedule": {
        f"power={power}": gradx.polynomial_schedule(1.0, 0.0, power, 800) for power in (0.5, 2.0)
    },
    "cosine_decay_schedule": {"": gradx.cosine_decay_schedule(1.0, 800, alpha=0.1)},
    "exponential_decay": {
        "smooth": gradx.exponential_decay(1.0, 200, 0.5),
        "staircase": gradx.exponential_decay(1.0, 200, 0.5, staircase=True),
    },
    "half_life_schedule": {"": gradx.half_life_schedule(0.9, 0.999, 800)},
    "step_schedule": {"": gradx.step_schedule(1.0, 300, 0.5)},
    "inverse_sqrt_schedule": {"": gradx.inverse_sqrt_schedule(0.0, 1.0, 100)},
    "warmup_constant_schedule": {"": WARMUP},
    "warmup_cosine_decay_schedule": {"": gradx.warmup_cosine_decay_schedule(0.0, 1.0, 100, 900)},
    "warmup_exponential_decay_schedule": {
        "": gradx.warmup_exponential_decay_schedule(0.0, 1.0, 100, 200, 0.5)
    },
    "wsd_schedule": {
        shape: gradx.wsd_schedule(0.0, 1.0, 100, 900, 400, shape=shape)
        for shape in ("linear", "cosine", "1-sqrt", "square")
    },
    "rex_schedule": {"": gradx.rex_schedule(1.0, 900)},
    "linear_onecycle_schedule": {"": gradx.linear_onecycle_schedule(900, 1.0)},
    "cosine_onecycle_schedule": {"": gradx.cosine_onecycle_schedule(900, 1.0)},
    "cyclic_schedule": {
        "triangular": gradx.cyclic_schedule(0.1, 1.0, 150),
        "triangular2": gradx.cyclic_schedule(0.1, 1.0, 150, "triangular2"),
    },
    "cosine_restarts_schedule": {
        "": gradx.cosine_restarts_schedule(1.0, 150, 3, length_factor=2.0, peak_factor=0.7)
    },
    "sgdr_schedule": {
        "": gradx.sgdr_schedule(
            [
                {"init_value": 0.0, "peak_value": peak, "warmup_steps": 50, "decay_steps": steps}
                for peak, steps in ((1.0, 300), (0.6, 600))
            ]
        )
    },
    "piecewise_constant_schedule": {
        "": gradx.piecewise_constant_schedule(1.0, {300: 0.5, 600: 0.5, 800: 0.2})
    },
    "piecewise_interpolate_schedule": {
        kind: gradx.piecewise_interpolate_schedule(kind, 1.0, {300: 0.5, 600: 0.5, 800: 0.2})
        for kind in ("linear", "cosine")
    },
    "join_schedules": {
        "": gradx.join_schedules([WARMUP, gradx.cosine_decay_schedule(1.0, 500)], [400])
    },
    "product_schedule": {"": WARMUP * gradx.rex_schedule(1.0, 900)},
    "sum_schedule": {"": 0.95 + -0.1 * gradx.cyclic_schedule(0.0, 1.0, 300)},
}


def described() -> str:
    """The code and the phases of each curve."""
    return "\n\n".join(
        f"{schedule!r}\n{schedule!s}" for curves in PANELS.values() for schedule in curves.values()
    )


def draw(ax: Any, name: str, curves: Mapping[str, ScheduleFn]) -> None:
    """A panel. A vertical line stands where a phase begins."""
    ax.set_title(name, family="monospace", size=7.5)
    counts = np.arange(STEPS + 1)
    for border in borders_of(*curves.values()):
        ax.axvline(border, color=GREY, lw=0.6, ls=(0, (2, 3)))
    for (label, schedule), (color, dashes) in zip(curves.items(), LINES, strict=False):
        ax.plot(counts, schedule(counts), dashes, color=color, lw=1.4, label=label)
    if len(curves) > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(curves))
    ax.set(xlim=(0, STEPS), xticks=(0, STEPS // 2, STEPS))
    ax.locator_params("y", nbins=3)


def main() -> None:
    import matplotlib as mpl  # a test reads the rest without it
    import matplotlib.pyplot as plt

    style = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "gradx",  # the same picture is the same file
        "font.family": "sans-serif",
        "font.size": 7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "legend.frameon": False,
        "legend.labelcolor": "linecolor",
        "legend.handlelength": 1.6,
        "legend.columnspacing": 1.0,
        **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "text.color"), GREY),
    }
    with mpl.rc_context(style):
        rows = -(-len(PANELS) // COLUMNS)
        figure, axes = plt.subplots(rows, COLUMNS, figsize=(9, 1.45 * rows), layout="constrained")
        for ax, (name, curves) in zip(axes.flat, PANELS.items(), strict=False):
            draw(ax, name, curves)
        for ax in axes.flat[len(PANELS) :]:
            ax.axis("off")
        figure.savefig(
            FILE,
            transparent=True,
            metadata={"Date": None, "Title": "Schedules", "Description": described()},
        )


if __name__ == "__main__":
    main()
