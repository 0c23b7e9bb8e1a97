"""Makes others.npz: what the authors' implementations do with the problem of torch.npz, in float64.

    pip install --no-deps torch schedulefree ...      (the sources in table_others.py)
    pip install numpy scipy opt-einsum pytorch-ranger tabulate colorama     (what they import)
    pip install jax optax chex                              (for the rows that are written in them)
    git clone https://github.com/rka97/dowg CLONES/rka97__dowg ...          (those on GitHub)
    python tests/trajectories/make_others.py CLONES

Only this script needs them. The file holds the losses, the curvature, the versions (of a clone its
commit), and for each row of table_others.py the parameters after the steps in KEPT.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # which would round in an order of its own

import numpy as np
import torch
from make_torch import schedule
from table import KEPT, STEPS
from table_others import ROWS, Row, directions, first_key

Arrays = dict[str, np.ndarray[Any, Any]]
Params = dict[str, torch.nn.Parameter]

HERE = Path(__file__).parent
CLONES = Path(sys.argv[1]) if len(sys.argv) > 1 else None

# Packages whose __init__ imports far more (models, GPU codecs) than the module that is wanted.
LIGHT = ("timm", "timm.optim", "galore_torch")

# Modules that are not here, with all that is made of them: whether something is of this class.
ABSENT: dict[str, dict[str, Any]] = {
    "flax": {},
    "flax.linen": {"Partitioned": type("Partitioned", (), {})},
    "optax._src.clipping": {},  # by a name of its own since
}


# ---------------------------------------------------------------- finding the implementations


def find(row: Row) -> Any:
    """What the row calls."""
    module, _, name = row.call.rpartition(":")
    if row.source.startswith("github.com/"):
        found = from_file(clone(row.source) / module)
    else:
        for package in LIGHT:
            if module.startswith(package + ".") and package not in sys.modules:
                without_init(package)
        found = importlib.import_module(module.replace(":", "."))
    for part in name.split("."):
        found = getattr(found, part)
    return found


def clone(source: str) -> Path:
    if CLONES is None:
        raise SystemExit(f"{source}: say in which folder the clones are")
    return CLONES / source.removeprefix("github.com/").replace("/", "__")


def from_file(path: Path) -> Any:
    package, text = path.parent.name, path.read_text()
    whole = (path.parent / "__init__.py").exists() and f"from {package}." in text
    if whole or re.search(r"^from \.", text, re.MULTILINE):
        sys.path.insert(0, str(path.parent.parent))
        # What asks for a whole graph is an error where compilation is switched off.
        torch.compile = lambda function=None, **_: function or (lambda f: f)
        return importlib.import_module(f"{package}.{path.stem}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def without_init(package: str) -> None:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    module = types.ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[package] = module


def version(source: str) -> str:
    if source.startswith("github.com/"):
        head = ["git", "-C", str(clone(source)), "rev-parse", "HEAD"]
        return subprocess.run(head, check=True, capture_output=True, text=True).stdout.strip()
    return importlib.metadata.version(source)


# ---------------------------------------------------------------- the loops


class Problem:
    """The parameters, and what each step gets."""

    def __init__(self, row: Row, stored: Arrays, losses: Any, curvature: Arrays) -> None:
        start = row.params_as({k: stored[f"params/{k}"] for k in ("b", "w")})
        self.params = {k: torch.nn.Parameter(torch.tensor(p)) for k, p in start.items()}
        self.curvature = {k: torch.tensor(c) for k, c in curvature.items()}
        self.losses = [torch.tensor(loss) for loss in losses]
        self.grads: Arrays | None = None
        if row.grads != "curved":
            self.grads = row.grads_as({k: stored[f"grads/{row.grads}/{k}"] for k in ("b", "w")})

    @property
    def list(self) -> list[torch.nn.Parameter]:
        return list(self.params.values())

    def gradients(self, step: int) -> dict[str, torch.Tensor]:
        if self.grads is None:
            return {k: c * self.params[k].detach() for k, c in self.curvature.items()}
        return {k: torch.tensor(g[step]) for k, g in self.grads.items()}

    def set(self, step: int) -> None:
        for name, g in self.gradients(step).items():
            self.params[name].grad = g


Steps = Iterator[None]


def inner(row: Row, params: Any) -> torch.optim.Optimizer:
    assert row.inner is not None
    name, kwargs = row.inner
    return getattr(torch.optim, name)(params, **kwargs)


def plain(row: Row, problem: Problem, step: Callable[..., Any] | None = None) -> Steps:
    optimizer = find(row)(problem.list, **row.kwargs)
    scheduler = schedule(optimizer, row.schedules)
    for t in range(STEPS):
        problem.set(t)
        (step or type(optimizer).step)(optimizer, **({} if step is None else {"t": t}))
        if scheduler is not None:
            scheduler.step()
        yield


def with_loss(row: Row, problem: Problem) -> Steps:
    return plain(row, problem, lambda optimizer, t: optimizer.step(loss=problem.losses[t]))


def with_closure(row: Row, problem: Problem) -> Steps:
    return plain(row, problem, lambda optimizer, t: optimizer.step(lambda: problem.losses[t]))


def wrapped(row: Row, problem: Problem) -> Steps:
    optimizer = find(row)(inner(row, problem.list), **row.kwargs)
    if row.how == "wrap and train":
        optimizer.train()
    for t in range(STEPS):
        problem.set(t)
        optimizer.step()
        yield


def schedule_free(row: Row, problem: Problem) -> Steps:
    """With "train" the parameters are y, with "train and evaluate" the average x."""
    optimizer = find(row)(problem.list, **row.kwargs)
    optimizer.train()
    for t in range(STEPS):
        problem.set(t)
        optimizer.step()
        if row.how == "train":
            yield
        else:
            optimizer.eval()
            yield
            optimizer.train()


def ascend_and_descend(row: Row, problem: Problem) -> Steps:
    assert row.inner is not None
    name, kwargs = row.inner
    optimizer = find(row)(problem.list, getattr(torch.optim, name), **row.kwargs, **kwargs)
    for t in range(STEPS):
        problem.set(t)
        (optimizer.second_step if t % 2 else optimizer.first_step)()
        yield


def hessian(row: Row, problem: Problem) -> Steps:
    optimizer = find(row)(problem.list, **row.kwargs)
    b1 = row.kwargs["betas"][0]
    for t in range(STEPS):
        problem.set(t)
        for group in optimizer.param_groups:
            group["rho"] = row.kwargs["rho"] * (1 - b1 ** (t + 1))
        optimizer.step(bs=1)
        if t % 4 == 0:
            optimizer.update_hessian()
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Leaves Tensor.bfloat16 and Tensor.float without effect."""
    originals = {name: getattr(torch.Tensor, name) for name in ("bfloat16", "float")}
    for name in originals:
        setattr(torch.Tensor, name, lambda tensor: tensor.clone())
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch.Tensor, name, original)


@contextmanager
def only_float64() -> Iterator[None]:
    """Leaves the names of shorter dtypes without effect, and random numbers those of the table."""
    empty = torch.empty
    names: dict[str, Any] = {"float32": torch.float64, "bfloat16": torch.float64}
    names["randn"] = lambda shape, **_: torch.tensor(directions(*shape))
    names["empty"] = lambda *shape, device=None, **about: empty(*shape, **about)  # not on a GPU
    originals = {name: getattr(torch, name) for name in names}
    for name, value in names.items():
        setattr(torch, name, value)
    try:
        with full_precision():
            yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def in_jax(row: Row, problem: Problem) -> Steps:
    """What is written for Optax; with "optax average" the parameters to evaluate with.

    With an inner optimizer that gets the vector; random numbers are those of the table.
    """
    import jax  # for these rows only

    jax.config.update("jax_enable_x64", True)
    jax.tree_map = jax.tree.map  # which JAX has no more
    for name, attributes in ABSENT.items():
        sys.modules.setdefault(name, types.ModuleType(name)).__dict__.update(attributes)
    tx = find(row)(**row.kwargs)
    given = [k for k in problem.params if row.inner is None or k == "w"]
    other = inner(row, [problem.params["b"]]) if row.inner is not None else None
    params = {k: jax.numpy.asarray(problem.params[k].detach().numpy()) for k in given}
    state, key = tx.init(params), first_key()
    for t in range(STEPS):
        problem.set(t)
        gradients = problem.gradients(t)
        grads = {k: jax.numpy.asarray(gradients[k].numpy()) for k in given}
        key, now = jax.random.split(key)
        white = jax.random.normal(now, problem.params["w"].shape, "float64")
        with mock.patch("jax.random.normal", return_value=white):
            updates, state = tx.update(grads, state, params)
        params = jax.tree.map(jax.numpy.add, params, updates)
        if other is not None:
            other.step()
        shown = params
        if row.how == "optax average":
            shown = find(replace(row, call=f"{row.call}_get_eval_params"))(state[0])
        for name in given:
            problem.params[name].data.copy_(torch.tensor(np.asarray(shown[name])))
        yield


def spelt_out(value: Any, module: Any) -> Any:
    """What a table that is read without torch writes as text: a dtype, a call of the module's."""
    if isinstance(value, tuple) and isinstance(value[0], str):
        name, kwargs = value
        return getattr(module, name)(**{k: spelt_out(v, module) for k, v in kwargs.items()})
    return torch.float64 if value == "float64" else value


def gather_alone(gathered: torch.Tensor, own: torch.Tensor, **_: Any) -> Any:
    """What all processes bring together, if there is only one."""
    gathered.copy_(own.view_as(gathered))
    return types.SimpleNamespace(wait=lambda: None)


def matrices(row: Row, problem: Problem) -> Steps:
    """The matrix, transposed, to the row's optimizer; the vector to the inner one, if any."""
    w, b = problem.params["w"], problem.params["b"]
    transposed = torch.nn.Parameter(w.detach().T.clone())
    precision = only_float64 if row.how.endswith("float64") else full_precision
    made = find(row)
    kwargs = {k: spelt_out(v, sys.modules[made.__module__]) for k, v in row.kwargs.items()}
    with precision():
        optimizer = made([transposed] if row.inner else [transposed, b], **kwargs)
        other = inner(row, [b]) if row.inner else None
    for t in range(STEPS):
        problem.set(t)
        assert w.grad is not None
        transposed.grad = w.grad.T.clone()
        gathering = mock.patch("torch.distributed.all_gather_into_tensor", gather_alone)
        with precision(), gathering:
            optimizer.step()
        if other is not None:
            other.step()
        w.data.copy_(transposed.detach().T)
        yield


def projected(row: Row, problem: Problem) -> Steps:
    """The matrix's gradient goes down, through the inner optimizer, and up again."""
    w, b = problem.params["w"], problem.params["b"]
    projector, low, small = find(row)(**row.kwargs), None, None
    other = inner(row, [b])
    for t in range(STEPS):
        problem.set(t)
        down = projector.project(w.grad, t)
        if low is None or small is None:
            low = torch.nn.Parameter(torch.zeros_like(down))
            small = inner(row, [low])
        low.data.zero_()
        low.grad = down
        small.step()
        other.step()
        w.data.add_(projector.project_back(low.detach()))
        yield


def changed(row: Row, problem: Problem) -> Steps:
    """A function that changes the gradients, then the inner optimizer."""
    function, optimizer = find(row), inner(row, problem.list)
    for t in range(STEPS):
        problem.set(t)
        for p in problem.list:
            assert p.grad is not None
            if row.how == "change":
                function(p.grad, **row.kwargs)
            else:
                p.grad = function(p.detach().T, p.grad.T, **row.kwargs).T.contiguous()
        optimizer.step()
        yield


def plateau(row: Row, problem: Problem) -> Steps:
    optimizer = inner(row, problem.list)
    scheduler = find(row)(optimizer, **row.kwargs)
    for t in range(STEPS):
        problem.set(t)
        scheduler.step(problem.losses[t])
        optimizer.step()
        yield


def examples(row: Row, problem: Problem) -> Steps:
    optimizer = find(row)(inner(row, problem.list), **row.kwargs)
    for t in range(STEPS):
        optimizer.zero_grad()
        for name, g in problem.gradients(t).items():
            problem.params[name].grad_sample = g
        optimizer.step()
        yield


LOOPS: dict[str, Callable[[Row, Problem], Steps]] = {
    "step": plain,
    "loss": with_loss,
    "closure": with_closure,
    "wrap": wrapped,
    "wrap and train": wrapped,
    "train": schedule_free,
    "train and evaluate": schedule_free,
    "ascend and descend": ascend_and_descend,
    "hessian after step 1, 5, 9, ...": hessian,
    "optax": in_jax,
    "optax average": in_jax,
    "matrices": matrices,
    "matrices, all in float64": matrices,
    "project": projected,
    "change": changed,
    "clip transposed": changed,
    "plateau": plateau,
    "examples": examples,
}


def trajectory(row: Row, problem: Problem) -> Arrays:
    """The parameters after the kept steps."""
    kept: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in problem.params}
    for t, _ in enumerate(LOOPS[row.how](row, problem)):
        if t + 1 in KEPT:
            for name, p in problem.params.items():
                kept[name].append(p.detach().numpy().copy())
    return {name: np.stack(ps) for name, ps in kept.items()}


def losses() -> np.ndarray[Any, Any]:
    """Positive, falling with setbacks and a plateau: for what looks at the loss."""
    rng = np.random.default_rng(20240301)
    t = np.arange(STEPS)
    falling = 3.0 * 0.9 ** np.minimum(t, 12)
    return falling * np.exp(rng.normal(scale=0.1, size=STEPS))


def curvature(shapes: dict[str, Sequence[int]]) -> Arrays:
    """Diagonals of a small Hessian: both norms of the first gradient are under 1."""
    rng = np.random.default_rng(20240302)
    return {name: rng.uniform(0.005, 0.05, size=shape) for name, shape in shapes.items()}


def main() -> None:
    """Writes the file."""
    torch.set_default_dtype(torch.float64)  # for what makes its scalars of the default type
    with np.load(HERE / "torch.npz") as file:
        stored = dict(file)
    loss, curved = losses(), curvature({k: stored[f"params/{k}"].shape for k in ("b", "w")})
    out: dict[str, Any] = {"losses": loss, **{f"curvature/{k}": c for k, c in curved.items()}}
    for key, row in ROWS.items():
        after = trajectory(row, Problem(row, stored, loss, curved))
        if not all(np.isfinite(p).all() for p in after.values()):
            raise ValueError(f"{key}: not finite")
        out |= {f"after/{key}/{name}": p for name, p in after.items()}
        out[f"recipe/{key}"] = row.recipe()
    for source in sorted({"torch", *(row.source for row in ROWS.values())}):
        out[f"version/{source}"] = version(source)
    np.savez_compressed(HERE / "others.npz", **out)


if __name__ == "__main__":
    main()
