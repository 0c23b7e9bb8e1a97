"""The settings of a run, which travel from the command line to the measuring processes."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Attributes:
      rows: a regular expression, searched in the names of `cases.CASES`.
      within: another one that has to be found as well, which a process sets.
      sections: names from `sections.SECTIONS`.
      quick: small trees; only to see that everything runs.
      repeats: samples of each step time.
      compile_repeats: samples of each compile cost, some seconds each.
      trace_repeats: samples if only tracing is measured.
      warmup: runs of each competitor before the samples; memory is touched first there.
      torch: whether torch.optim takes part, if it is installed and has the algorithm.
      large: whether to use the trees on which rows are compiled for accelerators.
      burst: steps in one sample, so that a device with a queue of work is kept busy.
      minutes: no row is begun after so many minutes; rows left out are named.
      pause: seconds of rest before a sample. Torch's OpenMP threads go on spinning for some
        milliseconds after their work, and would take a core away from the next competitor.
    """

    rows: str = ""
    within: str = ""
    sections: tuple[str, ...] = ("yardstick", "products", "steps", "family", "compile")
    quick: bool = False
    repeats: int = 9
    compile_repeats: int = 3
    trace_repeats: int = 1
    warmup: int = 3
    torch: bool = True
    large: bool = False
    burst: int = 1
    minutes: float = math.inf
    pause: float = 0.006

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Settings:
        fields = json.loads(text)
        return Settings(**fields | {"sections": tuple(fields["sections"])})


# For a GPU or TPU at hand: 100 million parameters, and at most eight minutes in all.
ACCELERATOR = Settings(
    sections=("yardstick", "precisions", "steps"),
    repeats=7,
    large=True,
    burst=10,
    minutes=6.5,
)
