"""Handwritten digits with a Flax NNX convnet: a clipped AdamW in an ordinary training loop.

    python examples/digits_nnx.py [--steps 600] [--seed 0] [--out examples/pictures]

The 1,797 scans of 8x8 pixels come with scikit-learn; a fifth of them is kept for the test. On two
CPU cores it takes about half a minute and ends at 99% test accuracy.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

import gradx

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURES = Path(__file__).parent / "pictures"


class ConvNet(nnx.Module):
    """Three convolutions, each followed by a group norm: 8x8 -> 4x4 -> 2x2 -> ten logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths, strides = (1, 32, 64, 96), (1, 2, 2)
        # The norm has a bias of its own, so the convolution needs none.
        self.convs = nnx.List(
            nnx.Conv(w_in, w_out, (3, 3), stride, use_bias=False, rngs=rngs)
            for w_in, w_out, stride in zip(widths, widths[1:], strides, strict=False)
        )
        self.norms = nnx.List(nnx.GroupNorm(w, num_groups=8, rngs=rngs) for w in widths[1:])
        self.head = nnx.Linear(4 * widths[-1], 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images[..., None]
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.gelu(norm(conv(x)))
        return self.head(x.reshape(len(x), -1))


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Train images, test images, train labels, test labels; the same split in every run."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


def shifted(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image moved by up to one pixel either way: all the augmentation that is needed."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1)))
    corners = jax.random.randint(key, (len(images), 2), 0, 3)
    return jax.vmap(lambda x, corner: jax.lax.dynamic_slice(x, corner, (8, 8)))(padded, corners)


def main(steps: int = 600, batch: int = 128, seed: int = 0, out: Path = PICTURES) -> float:
    """Trains for so many steps, draws the curves, and returns the accuracy on the test set."""
    started = time.perf_counter()
    train_x, test_x, train_y, test_y = digits()
    graph, params = nnx.split(ConvNet(nnx.Rngs(seed)))

    rate = gradx.warmup_cosine_decay_schedule(0.0, 4e-3, max(1, steps // 10), steps)
    tx = gradx.chain(
        gradx.clip_by_global_norm(1.0),
        # Norms and biases are not decayed: a pattern for their paths replaces a mask tree.
        gradx.adamw(rate, weight_decay=gradx.by_path({r"bias|scale": 0.0}, default=0.05)),
    )
    print(repr(tx))
    print(gradx.describe(tx, params))

    def loss_of(params: nnx.State, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(graph, params)(x)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), (logits.argmax(-1) == y).mean()

    def step(
        params: nnx.State, state: optax.OptState, x: jax.Array, y: jax.Array, key: jax.Array
    ) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        grads_of = jax.value_and_grad(loss_of, has_aux=True)
        (loss, accuracy), grads = grads_of(params, shifted(x, key), y)
        updates, state = tx.update(grads, state, params)
        metrics = {"loss": loss, "accuracy": accuracy, "gradient norm": gradx.global_norm(grads)}
        return gradx.apply_updates(params, updates), state, metrics

    # Donated trees are updated in place if the step returns them in the order of its arguments:
    # (params, state, …) -> (params, state, …). With the order swapped, XLA copies both.
    step = jax.jit(step, donate_argnums=(0, 1))
    accuracy_of = jax.jit(lambda params: loss_of(params, test_x, test_y)[1])

    state = tx.init(params)
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), steps)
    history, test_accuracy = [], {}
    progress = trange(steps, desc="digits", unit="step")
    for i in progress:
        rows = rng.choice(len(train_x), batch, replace=False)
        params, state, metrics = step(params, state, train_x[rows], train_y[rows], keys[i])
        history.append(metrics)
        if (i + 1) % 20 == 0 or i + 1 == steps:
            test_accuracy[i + 1] = float(accuracy_of(params))
            progress.set_postfix(loss=f"{metrics['loss']:.3f}", test=f"{test_accuracy[i + 1]:.2%}")

    curves = {name: np.asarray([m[name] for m in history]) for name in history[0]}
    curves["learning rate"] = np.asarray(jax.vmap(rate)(jnp.arange(steps)))
    draw(curves, test_accuracy, out / "digits_nnx.png")
    final = test_accuracy[steps]
    seconds = time.perf_counter() - started
    print(f"digits_nnx: seed {seed}, {steps} steps, test accuracy {final:.2%}, {seconds:.1f} s")
    return final


def draw(curves: dict[str, np.ndarray], test_accuracy: dict[int, float], path: Path) -> None:
    names = [["loss", "accuracy"], ["learning rate", "gradient norm"]]
    figure, axes = plt.subplot_mosaic(names, figsize=(8, 5), sharex=True, layout="constrained")
    for name, ax in axes.items():
        ax.plot(curves[name], lw=1, color="#4477aa", label="training batch")
        ax.set_title(name, loc="left")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes["loss"].set_yscale("log")
    at, tested = list(test_accuracy), list(test_accuracy.values())
    axes["accuracy"].plot(at, tested, "o-", ms=3, lw=1, color="#cc6677", label="test")
    axes["accuracy"].set_ylim(max(0.0, 2 * max(tested) - 1.1), 1.005)  # the last few percent
    axes["accuracy"].legend(frameon=False, loc="lower right")
    axes["gradient norm"].axhline(1.0, lw=1, ls="--", color="#888888", label="clipped above")
    axes["gradient norm"].legend(frameon=False, loc="upper right")
    for name in names[1]:
        axes[name].set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps (%(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and shifts")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the picture")
    main(**vars(parser.parse_args()))
