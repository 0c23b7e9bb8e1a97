"""Which optimizer takes the fewest steps? Matrix optimizers on the character transformer.

    python examples/charlm_matrix.py [--steps 200] [--only Muon SOAP] [--out examples/pictures]

Each has five learning rates, a factor of two apart; the one with the lowest loss on seed 0 is used
on seeds 1, 2 and 3. The middle rates, and Muon's betas but 0.95, come from trials on a seed 10. All
see the same batches, and all but Scion train what is not a matrix by AdamW at its best rate. Rates
rise for a twentieth of the steps and stay. Losses are those of the average of the weights over the
last tenth of the steps so far, since a decay of the rate would have to know the last step.
"""

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for QR of matrices this small, more are slower

import jax
import jax.numpy as jnp
import numpy as np
import optax
from charlm_sweep import CONTEXT, PICTURES, Transformer, corpus, plt, save
from tqdm import tqdm

import gradx

SEEDS, BATCH = (1, 2, 3), 32
FACTORS = 2.0 ** np.arange(-2, 3)
POINTS = np.arange(1, 21) / 20  # where in a run the validation loss is taken
windows, valid, vocabulary = corpus()
valid = valid[::6].reshape(-1, CONTEXT + 1)
model = Transformer(vocabulary)

axes = gradx.matrices_by_name
kernels = gradx.by_path({"head": False, "kernel": True}, default=False)
decay = gradx.add_cautious_decay(2e-3, mask=kernels, flip_sign=True)
polar = gradx.scale_by_muon("polar_express", weight_dimension_numbers=axes)
express = partial(gradx.muon, ns_coeffs="polar_express")
brisk = partial(gradx.muon, beta=0.9)  # in runs this short 0.95 remembers too long
mars = gradx.correct_by_mars(b1=0.9)
adamw = partial(gradx.adamw, b2=0.98, weight_decay=0.01)

# Name: the middle rate, and what makes the optimizer of a rate and a fallback.
OPTIMIZERS: dict[str, tuple[float, Callable[..., Any]]] = {
    "AdamW": (8e-3, lambda rate, fallback: adamw(rate)),
    "Muon": (4e-2, gradx.muon),
    "NorMuon": (8e-3, gradx.normuon),
    "Dion2": (4e-2, gradx.dion2),
    "Scion": (7e-4, lambda rate, fallback: gradx.scion(rate)),
    "Shampoo": (8e-3, partial(gradx.shampoo, b2=0.98, graft_b2=0.98, precondition_frequency=10)),
    "SOAP": (8e-3, gradx.soap),
    "KL-SOAP": (8e-3, gradx.kl_soap),
    "SPlus": (0.4, partial(gradx.splus, precondition_frequency=10)),
    "PSGD-Kron": (4e-3, gradx.psgd_kron),
    "SOAP, hyperball": (4e-2, partial(gradx.hyperball, gradx.scale_by_soap(axes=axes))),
    "Muon, hyperball": (4e-2, partial(gradx.hyperball, polar)),
    "Muon, cautious decay": (4e-2, lambda *a, **k: gradx.chain(express(*a, **k), decay)),
    "Muon at 0.9": (4e-2, brisk),
    "Muon, slow average": (4e-2, partial(gradx.muon, beta=0.8, b3=0.97, alpha=1.0)),
    "MARS, Muon at 0.9": (4e-2, lambda *a, **k: gradx.chain(mars, brisk(*a, **k))),
}


def loss_of(params: Any, texts: jax.Array) -> jax.Array:
    logits = model.apply(params, texts[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, texts[:, 1:]).mean()


def trainer(make: Any, adamw_rate: float, steps: int) -> Callable[[float, int], np.ndarray]:
    """A function from learning rate and seed to validation losses."""
    warmup = gradx.linear_schedule(0.0, 1.0, steps // 20)
    rate = gradx.scaled(warmup, gradx.tunable(1.0, name="learning_rate"))
    optimizer = make(rate, fallback=adamw(gradx.scaled(warmup, adamw_rate)))
    tx = gradx.chain(gradx.clip_by_global_norm(1.0), optimizer)

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        t, params, average, state = carry
        updates, state = tx.update(jax.grad(loss_of)(params, batch), state, params)
        params = gradx.apply_updates(params, updates)
        average = gradx.incremental_update(params, average, 20 / (20 + t))
        return (t + 1, params, average, state), None

    def stretch(carry: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, loss_of(carry[2], valid)

    @jax.jit  # one program for all rates and seeds: the rate is a live value in the state
    def train(rate: jax.Array, params: Any, batches: jax.Array) -> jax.Array:
        state = gradx.set_hyperparams(tx.init(params), learning_rate=rate)
        return jax.lax.scan(stretch, (0.0, params, params, state), batches)[1]

    def run(rate: float, seed: int) -> np.ndarray:
        shape = len(POINTS), steps // len(POINTS), BATCH
        batches = windows[np.random.default_rng(seed).integers(len(windows), size=shape)]
        params = model.init(jax.random.key(seed), windows[:1, :-1])
        return np.asarray(train(jnp.float32(rate), params, batches))

    return run


def reached(losses: np.ndarray, target: float) -> Any:
    """The part of the steps after which the loss is down to the target; inf if it never is."""
    return np.interp(-target, -np.fmin.accumulate(losses), POINTS, right=np.inf)


def main(steps: int = 200, only: list[str] | None = None, out: Path = PICTURES) -> None:
    names = only or list(OPTIMIZERS)[1:]

    def study(name: str, adamw_rate: float = 0.0) -> tuple[float, np.ndarray]:
        """The best rate of an optimizer, and the losses of each seed with it."""
        middle, make = OPTIMIZERS[name]
        run = trainer(make, adamw_rate, steps)
        best = middle * FACTORS[np.nanargmin([run(middle * f, 0)[-1] for f in FACTORS])]
        return best, np.stack([run(best, seed) for seed in SEEDS])

    studies = {"AdamW": study("AdamW")}
    with ThreadPoolExecutor() as pool:  # since programs this small do not fill the cores
        others = pool.map(partial(study, adamw_rate=studies["AdamW"][0]), names)
        studies |= dict(zip(names, tqdm(others, total=len(names)), strict=True))

    target = studies["AdamW"][1][:, -1]  # for each seed
    parts = {k: np.array(list(map(reached, losses, target))) for k, (_, losses) in studies.items()}
    names = sorted(studies, key=lambda name: parts[name].mean())
    print("| optimizer | rate (*: edge) | loss | steps / AdamW's |\n| --- | --: | --: | --: |")
    for name in names:
        (rate, losses), part = studies[name], parts[name]
        edge = "*" if rate in OPTIMIZERS[name][0] * FACTORS[[0, -1]] else ""
        spread = f"{part.mean():.2f} ({part.min():.2f} to {part.max():.2f})"
        print(f"| {name} | {rate:.2g}{edge} | {losses[:, -1].mean():.3f} | {spread} |")
    draw(steps, {n: studies[n][1] for n in names}, parts, out / "charlm_matrix.png")
    least = f"{names[0]} takes {parts[names[0]].mean():.2f} of AdamW's steps"
    print(f"charlm_matrix: {least} to {target.mean():.3f} nats a character, {len(SEEDS)} seeds")


def draw(steps: int, losses: dict[str, Any], parts: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for row, name in enumerate(losses):
        color = "black" if name == "AdamW" else plt.get_cmap("turbo")((row + 1) / (len(losses) + 1))
        left.plot(steps * POINTS, losses[name].mean(0), color=color)
        right.plot(np.minimum(parts[name], 1.05), [row] * len(SEEDS), "|-", color=color)
        right.plot(min(parts[name].mean(), 1.05), row, "o", color=color)
    target = losses["AdamW"][:, -1].mean()
    left.axhline(target, lw=0.8, ls="--", color="black")
    left.set(xlabel="step", ylim=(None, target + 0.8), title="nats a character, colours as right")
    right.set_yticks(range(len(losses)), losses)
    right.set_title("steps to AdamW's last loss / AdamW's")
    right.invert_yaxis()  # the best on top, as in the table
    save(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="a multiple of 20 (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=OPTIMIZERS, help="beside AdamW (all)")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the picture")
    main(**vars(parser.parse_args()))
