"""Where modules went, so that states that were pickled before still load.

Pickle stores the module of a class. A module that has moved is found here under its old name, and
takes its contents from where they are now. Public names never move: `from gradx import adam`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MOVED = {
    "arguments": "numbers.arguments",
    "binding": "core.binding",
    "blocks": "linalg.blocks",
    "calls": "core.calls",
    "clip": "pieces.clip",
    "combine": "combinators.chain",
    "config": "inspection.config",
    "constrain": "pieces.constraints",
    "counting": "numbers.counting",
    "curvature": "optimizers.second_order.hutchinson",
    "curves": "schedules.curves",
    "cycles": "schedules.sequences",
    "decay": "pieces.weight_decay",
    "distributed.collectives": "pieces.collectives",
    "divergence": "optimizers.matrix.kl_divergence",
    "eigenbasis": "linalg.eigenbasis",
    "fallback": "optimizers.matrix.fallback",
    "gating": "combinators.predicated",
    "gradients": "pieces.preprocessing",
    "groups": "combinators.partition",
    "hyper": "numbers.hyper",
    "inspect": "inspection.describe",
    "interpolation": "optimizers.averaging.interpolation",
    "joined": "lift.sequence",
    "lapack": "linalg.decompositions",
    "leafwise": "lift.leafwise",
    "live": "numbers.live",
    "mapped": "lift.mapped",
    "masks": "lift.masks",
    "matrices": "lift.matrices",
    "matrix_names": "lift.matrix_names",
    "matrixwise": "lift.matrixwise",
    "mirror": "core.mirror",
    "momenta": "pieces.momentum",
    "moments": "pieces.moments",
    "names": "numbers.namespace",
    "near": "core.suggestions",
    "norms": "pieces.norms",
    "orthogonal": "optimizers.matrix.orthogonal",
    "per_example": "pieces.per_example",
    "piecewise": "schedules.piecewise",
    "polar": "linalg.polar",
    "powers": "core.roots",
    "replicas": "lift.replicas",
    "rules.adagrad": "optimizers.first_order.adagrad",
    "rules.adam": "optimizers.first_order.adam",
    "rules.adam_delayed": "optimizers.first_order.acprop_adopt",
    "rules.adam_max": "optimizers.first_order.amsgrad_adamax",
    "rules.adam_mix": "optimizers.first_order.ademamix",
    "rules.adam_variance": "optimizers.first_order.adabelief_radam_yogi",
    "rules.adamuon": "optimizers.matrix.adamuon",
    "rules.adan": "optimizers.first_order.adan",
    "rules.cover": "optimizers.first_order.sm3",
    "rules.dion": "optimizers.matrix.dion",
    "rules.dion2": "optimizers.matrix.dion2",
    "rules.distance": "optimizers.tuning_free.dog",
    "rules.distance_by_leaf": "optimizers.tuning_free.dog_by_leaf",
    "rules.dual_averaging": "optimizers.first_order.dual_averaging",
    "rules.factored": "optimizers.first_order.adafactor",
    "rules.galore": "optimizers.matrix.galore",
    "rules.kl_shampoo": "optimizers.matrix.kl_shampoo",
    "rules.kl_soap": "optimizers.matrix.kl_soap",
    "rules.lbfgs": "optimizers.second_order.lbfgs",
    "rules.loss_aware": "optimizers.tuning_free.polyak_momo",
    "rules.mars": "optimizers.first_order.mars",
    "rules.muon": "optimizers.matrix.muon",
    "rules.normuon": "optimizers.matrix.normuon",
    "rules.optimistic": "optimizers.first_order.optimistic",
    "rules.privacy": "optimizers.first_order.dpsgd",
    "rules.prodigy": "optimizers.tuning_free.prodigy",
    "rules.psgd": "optimizers.matrix.psgd",
    "rules.qk_clip": "optimizers.matrix.qk_clip",
    "rules.rmsprop": "optimizers.first_order.rmsprop",
    "rules.rprop": "optimizers.first_order.rprop",
    "rules.scion": "optimizers.matrix.scion",
    "rules.sgd": "optimizers.first_order.sgd",
    "rules.shampoo": "optimizers.matrix.shampoo",
    "rules.sign": "optimizers.sign.lion_signum",
    "rules.soap": "optimizers.matrix.soap",
    "rules.sophia": "optimizers.second_order.sophia",
    "rules.splus": "optimizers.matrix.splus",
    "rules.trust": "optimizers.layerwise.trust_ratio",
    "scale": "pieces.scaling",
    "search.backtracking": "line_search.backtracking",
    "search.line": "line_search.objective",
    "search.wolfe": "line_search.wolfe",
    "search.zoom": "line_search.zoom",
    "selective": "combinators.selective",
    "setting": "inspection.set_hyperparams",
    "sharing": "lift.sharing",
    "show": "core.show",
    "sources": "numbers.sources",
    "spec": "core.spec",
    "stacked": "lift.batching",
    "stage": "lift.passes",
    "starts": "core.initial",
    "state_map": "core.state_map",
    "states": "lift.states",
    "step": "core.updates",
    "table": "core.table",
    "trees": "core.trees",
    "whitening": "linalg.triangular",
    "wrap.accumulate": "combinators.accumulate",
    "wrap.cautious": "combinators.cautious",
    "wrap.conditional": "combinators.conditional",
    "wrap.every": "pieces.every",
    "wrap.hyperball": "optimizers.matrix.hyperball",
    "wrap.inject": "combinators.inject",
    "wrap.lookahead": "combinators.lookahead",
    "wrap.mechanic": "optimizers.tuning_free.mechanic",
    "wrap.monitoring": "pieces.monitoring",
    "wrap.plateau": "pieces.plateau",
    "wrap.sam": "combinators.sam",
    "wrap.schedule_free": "optimizers.averaging.schedule_free",
    "wrap.views": "combinators.views",
}

# Where else to look for the contents of modules that were split.
_AND = {
    "joined": ["lift.rule"],
    "leafwise": ["lift.rule"],
    "moments": ["lift.averages"],
    "sources": ["numbers.paths"],
    "stage": ["lift.stages"],
}

_FOLDERS = {name.partition(".")[0] for name in MOVED if "." in name}


class Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module of gradx under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "gradx" or not (name in MOVED or name in _FOLDERS):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=name in _FOLDERS)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__.partition(".")[2]

        def get(asked: str) -> Any:
            homes = [MOVED[name], *_AND.get(name, ())] if name in MOVED else []
            public = sys.modules["gradx"]
            for home in [] if asked.startswith("__") else homes:
                found = importlib.import_module(f"gradx.{home}")
                if hasattr(found, asked):
                    return getattr(found, asked)
            if homes and asked in dir(public):
                return getattr(public, asked)
            raise AttributeError(
                f"gradx.{name} was an internal module and has moved"
                f"{f' to gradx.{homes[0]}' if homes else ''}; there is no {asked!r} any more. "
                f"docs/new_rule.md shows how rules are written now."
            )

        vars(module)["__getattr__"] = get


class Face(ModuleType):
    """The module `gradx`. An imported module never replaces a function of its name here.

    `gradx.scale` is a function. There was a module of that name, which old pickles import.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and callable(vars(self).get(name))):
            super().__setattr__(name, value)


# What has moved out of a module that is still there.
_SPLIT = {"numbers.sources": "numbers.paths"}


def find() -> None:
    """Makes old names importable; modules that exist are found first."""
    sys.modules["gradx"].__class__ = Face
    for old, new in _SPLIT.items():
        home = importlib.import_module(f"gradx.{new}")
        vars(sys.modules[f"gradx.{old}"])["__getattr__"] = functools.partial(getattr, home)
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
