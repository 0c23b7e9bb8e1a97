"""Makes torch.npz: what torch.optim does with fixed gradients, in float64.

    pip install torch --index-url https://download.pytorch.org/whl/cpu
    python tests/trajectories/make_torch.py

Only this script needs torch. The file holds the first parameters, the gradient sequences, torch's
version, and for each row of table.py the parameters after the steps in KEPT, with the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from table import KEPT, ROWS, STEPS, Call, Row

Arrays = dict[str, np.ndarray[Any, Any]]

SHAPES = {"b": (5,), "w": (3, 4)}


def problem() -> tuple[Arrays, dict[str, Arrays]]:
    """First parameters, and gradients whose scale moves over four decades from step to step."""
    rng = np.random.default_rng(20240229)
    params = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    scales = 10.0 ** rng.uniform(-2, 2, size=STEPS)
    dense, sparse = {}, {}
    for name, shape in SHAPES.items():
        drift = rng.normal(size=shape)  # some signs stay, some change: for moments and for signs
        noise = rng.normal(size=(STEPS, *shape))
        dense[name] = (drift + noise) * scales.reshape(-1, *(1 for _ in shape))
        keep = rng.random(dense[name].shape) > 0.3
        keep[0], keep[..., 0] = False, False
        sparse[name] = dense[name] * keep
    huge = {name: 1e8 * g for name, g in dense.items()}
    return params, {"dense": dense, "sparse": sparse, "huge": huge}


def trajectory(row: Row, start: Arrays, grads: Arrays) -> Arrays:
    """The parameters after the kept steps."""
    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start.items()}
    groups = [{"params": [p], **row.groups.get(name, {})} for name, p in params.items()]
    optimizer = getattr(torch.optim, row.torch)(groups, **row.kwargs)
    scheduler = schedule(optimizer, row.schedules)
    kept: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in params}
    for step in range(STEPS):
        for name, p in params.items():
            p.grad = torch.tensor(grads[name][step])
        if row.clip is not None:
            function, kwargs = row.clip
            getattr(torch.nn.utils, function)(params.values(), **kwargs)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if step + 1 in KEPT:
            for name, p in params.items():
                kept[name].append(p.detach().numpy().copy())
    return {name: np.stack(ps) for name, ps in kept.items()}


def schedule(optimizer: torch.optim.Optimizer, calls: tuple[Call, ...]) -> Any:
    """The scheduler, or the first one around the others."""
    if not calls:
        return None
    (name, kwargs), *inner = calls
    made = [schedule(optimizer, (call,)) for call in inner]
    args = (made,) if made else ()
    return getattr(torch.optim.lr_scheduler, name)(optimizer, *args, **kwargs)


def main() -> None:
    """Writes the file."""
    torch.set_default_dtype(torch.float64)  # NAdam's product of momenta is of the default type
    params, sequences = problem()
    out: dict[str, Any] = {"torch_version": torch.__version__}
    out |= {f"params/{name}": p for name, p in params.items()}
    for kind, grads in sequences.items():
        out |= {f"grads/{kind}/{name}": g for name, g in grads.items()}
    for key, row in ROWS.items():
        after = trajectory(row, params, sequences[row.grads])
        if not all(np.isfinite(p).all() for p in after.values()):
            raise ValueError(f"{key}: not finite")
        out |= {f"after/{key}/{name}": p for name, p in after.items()}
        out[f"recipe/{key}"] = row.recipe()
    np.savez_compressed(Path(__file__).with_name("torch.npz"), **out)


if __name__ == "__main__":
    main()
