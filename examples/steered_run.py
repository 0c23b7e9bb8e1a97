"""A run that is steered: faults are skipped, a rate is lowered, the chain changes, averages count.

    python examples/steered_run.py [--steps 400] [--seed 0] [--out examples/pictures]

A small convnet learns the digits of scikit-learn, while one gradient in twenty is broken: a NaN, an
infinity or 1e30. At a third of the run the learning rate is lowered in the state, without compiling
again. At two thirds Muon takes the place of AdamW, with a falling rate; `transfer_state` carries
over what belongs together. At the end the averaged parameters are evaluated beside the last ones.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

import gradx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"
FAULTS = np.array([np.nan, np.inf, 1e30], np.float32)


class ConvNet(nn.Module):
    """Two convolutions, each followed by a group norm: 8x8 -> 4x4 -> ten logits."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = images[..., None]
        for width, stride in ((16, 1), (32, 2)):
            x = nn.gelu(nn.GroupNorm(8)(nn.Conv(width, (3, 3), stride, use_bias=False)(x)))
        return nn.Dense(10)(x.reshape(len(x), -1))


def digits() -> Any:
    """Train images, test images, train labels, test labels; the same split in every run."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


def watched(optimizer: Any) -> gradx.Transform:
    """The optimizer with an average, a guard around it, and measurements around the guard."""
    chain = gradx.chain(
        gradx.clip_by_global_norm(1.0), optimizer, gradx.ema_params(half_life=20, every=2)
    )
    guard = gradx.skip_nonfinite(chain, flag_after=10, loss=gradx.from_call("value"))
    return gradx.watch(guard, every=5)


def stepper(model: nn.Module, tx: gradx.Transform) -> Any:
    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any, fault: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            logits = model.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        grads["params"]["Dense_0"]["bias"] *= fault  # 1 in a step without a fault
        updates, state = tx.update(grads, state, params, value=loss)
        return gradx.apply_updates(params, updates), state, loss

    return step


def main(steps: int = 400, seed: int = 0, out: Path = PICTURES) -> float:
    """Trains, steers, draws; returns the test accuracy of the averaged parameters."""
    started = time.perf_counter()
    train_x, test_x, train_y, test_y = digits()
    model = ConvNet()
    params = model.init(jax.random.key(seed), train_x[:1])
    tx = watched(gradx.adamw(gradx.tunable(3e-3)))
    state, step = tx.init(params), stepper(model, tx)
    lowered, changed = steps // 3, 2 * steps // 3
    rng, log = np.random.default_rng(seed), []
    for t in trange(steps, desc="steered", unit="step"):
        if t == lowered:
            state = gradx.set_hyperparams(state, learning_rate=1e-3)
        if t == changed:
            compiled = step._cache_size()
            # The new schedule goes on at the count of the old state.
            falling = gradx.linear_schedule(0.01, 0.0, steps - changed, transition_begin=changed)
            tx = watched(gradx.muon(falling))
            transfer = gradx.transfer_state(state, tx, params, strict=False)
            print(transfer)
            state, step = transfer.state, stepper(model, tx)
        rows = rng.choice(len(train_x), 128, replace=False)
        fault = rng.choice(FAULTS) if rng.random() < 0.05 else np.float32(1.0)
        params, state, loss = step(params, state, train_x[rows], train_y[rows], fault)
        told = {k.removeprefix("muon/"): float(x) for k, x in gradx.metrics(state).items()}
        if told["flagged"]:
            raise RuntimeError("ten steps in a row were not finite")
        log.append({"step": t, "loss": float(loss), "fault": float(fault), **told})

    def accuracy(params: Any) -> float:
        return float((model.apply(params, test_x).argmax(-1) == test_y).mean())

    averaged = gradx.eval_params(tx, state, params)
    out.mkdir(parents=True, exist_ok=True)
    write(log, out / "steered_run.csv")
    draw(log, (lowered, changed), out / "steered_run.png")
    print(
        f"steered_run: seed {seed}, {steps} steps, {int(told['skipped'])} faults skipped, compiled "
        f"{compiled} time before the change, test accuracy {accuracy(params):.2%}, averaged "
        f"{accuracy(averaged):.2%}, {time.perf_counter() - started:.1f} s"
    )
    return accuracy(averaged)


def write(log: list[dict[str, float]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in log for name in row))
        writer.writeheader()
        writer.writerows(log)


def draw(log: list[dict[str, float]], marks: tuple[int, int], path: Path) -> None:
    names = ("loss", "gradient_norm", "update_ratio", "learning_rate", "skipped")
    figure, axes = plt.subplots(len(names), figsize=(8, 9), sharex=True, layout="constrained")
    for ax, name in zip(axes, names, strict=True):
        ax.plot([row.get(name, np.nan) for row in log], lw=1, color="#4477aa")
        ax.set_title(name, loc="left")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        for mark in marks:
            ax.axvline(mark, lw=1, ls="--", color="#cc6677")
    for ax in axes[:3]:
        ax.set_yscale("log")
    axes[-1].set_xlabel("step; the lines are where the rate is lowered and the chain changes")
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and faults")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for picture and CSV")
    main(**vars(parser.parse_args()))
