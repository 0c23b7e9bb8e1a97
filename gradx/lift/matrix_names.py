"""Which leaves are matrices, as far as names and shapes can tell.

A leaf is judged by its own shape and by the paths of the whole tree, also those of leaves that a
mask hides or that have no gradient. So the judgement is the same in `init` and in `update`, for the
whole tree and for the part of it that one group sees.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradx import core
from gradx.contract import MaskedNode
from gradx.core import trees as gtree
from gradx.lift.matrices import MatrixAxes, matrices

__all__ = ["matrices_by_name"]


class Judgement(NamedTuple):
    """How a leaf is seen, and why."""

    axes: MatrixAxes | None
    why: str
    in_doubt: bool = False  # a matrix that may be the head


# What a segment of a path is if this is its last word: `lm_head` and `head_2` are a head; `heads`,
# `overhead` and `head_mixer` are not.
_LAST_WORDS = {
    "an embedding": "embed embedding embeddings embedder emb wte wpe vocab token tokens "
    "pos position positions",
    "a head": "head logits unembed unembedding readout classifier",
    "a bias, a scale or a norm": "bias scale norm layernorm rmsnorm batchnorm groupnorm bn ln",
}
_KINDS = {word: kind for kind, words in _LAST_WORDS.items() for word in words.split()}
_OF_EMBED = {"in", "out", "tokens", "table", "positions", "matrix", "weights"}  # `embed_in`
_ATTENTION = ("attention", "attn", "mha")
_INTO_HEADS = {"query", "key", "value", "qkv", "q", "k", "v"}
_OUT_OF_HEADS = {"out", "o"}
_LAST_LAYER = {"cls", "output", "outputs", "out", "predictions", "decoder", "fc"}
# Also inside a model, so it is a head only where nothing else may be one.
_HIDDEN_TOO = {"fc"}
_ARRAYS = {"kernel", "weight", "weights", "w", "bias", "b"}  # what a module calls its own

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of `RMSNorm_0`: RMS, Norm


def _words(segment: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(segment)]


def _kind(words: list[str]) -> str | None:
    """What these words, of a segment, say that a leaf is, if it is no matrix."""
    words = [word for word in words if len(word) > 1]  # `ln_f` is a norm
    if words[:1] in (["embed"], ["embedding"]) and _OF_EMBED.intersection(words[1:2]):
        return "an embedding"
    if words[:1] in (["logit"], ["logits"], ["logitdense"]):  # of T5 and of Flax's examples
        return "a head"
    return _KINDS.get(words[-1]) if words else None


def _name(segment: str) -> str:
    """The word that tells what a module is: `q` of `q_proj`, `fc` of `c_fc`."""
    words = [word for word in _words(segment) if word not in ("proj", "kernel")]
    return words[-1] if words else ""


def _number(segment: str) -> tuple[str, int]:
    """`Dense_1` is the second of a series, and `linear` the first."""
    stem = segment.rstrip("0123456789")
    return stem.rstrip("_-."), int(segment[len(stem) :] or 0)


class _Tree:
    """What the paths of a whole tree say of each of them."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.children: dict[tuple[str, ...], set[str]] = {}
        all_segments = [path.split("/") for path in paths]
        for segments in all_segments:
            for i, segment in enumerate(segments):
                self.children.setdefault(tuple(segments[:i]), set()).add(segment)
        self.has_head = any(self._in_head(segments) for segments in all_segments)
        # Where the layers of the model are side by side: below `params`, say.
        self.top: tuple[str, ...] = ()
        depth = min((len(self.module(s)) for s in all_segments), default=1) - 1
        while len(self.top) < depth and len(self.children[self.top]) == 1:
            self.top += tuple(self.children[self.top])

    @staticmethod
    def module(segments: Sequence[str]) -> tuple[str, ...]:
        """The module that holds a leaf, or the leaf itself where it is none of a module's own."""
        own = len(segments) > 1 and segments[-1] in _ARRAYS
        return tuple(segments[:-1] if own else segments)

    def in_attention(self, segments: Sequence[str]) -> bool:
        return any(word.endswith(_ATTENTION) for s in segments for word in _words(s))

    def _in_head(self, segments: Sequence[str]) -> bool:
        heads = any(_kind(_words(s)) == "a head" for s in segments)
        return heads and not self.in_attention(segments)

    def out_of_heads(self, segments: Sequence[str]) -> bool:
        """Whether it is below the output projection of an attention, as the siblings tell."""
        inside = self.in_attention(segments)
        for i, segment in enumerate(segments):
            siblings = {_name(s) for s in self.children[tuple(segments[:i])]}
            if _name(segment) in _OUT_OF_HEADS and (inside or siblings & _INTO_HEADS):
                return True
        return False

    def last(self, segments: Sequence[str]) -> str | None:
        """`"head"` for what is the last layer of the model by its name, `"perhaps"` if it may be.

        It is a layer of the model itself, no part of a block, and followed by no further one.
        """
        module = self.module(segments)
        depth = len(self.top)
        below = module[depth:]
        # `cls/predictions/decoder` is all one head, `layer_0/output/dense` is none.
        named = [_name(s) in _LAST_LAYER for s in below]
        if len(below) != 1 and not all(named):
            return None
        beside = self.children[self.top]
        names = {_name(s) for s in beside}
        if names & _INTO_HEADS:
            return None  # all of this is one attention
        stem, number = _number(below[0])
        if any(_number(s)[0] == stem and _number(s)[1] > number for s in beside):
            return None
        if all(named):
            rivals = any(self._is_plain(s) for s in beside if _number(s)[0] != stem)
            sure = not self.has_head and not (_name(below[0]) in _HIDDEN_TOO and rivals)
            return "head" if sure else "perhaps"
        return None if self.has_head or names & (_LAST_LAYER - _HIDDEN_TOO) else "perhaps"

    def _is_plain(self, segment: str) -> bool:
        """Whether a module of the model itself may be a dense layer, hidden or last."""
        words = _words(segment)
        inside = self.children.get((*self.top, segment), set())
        known = _kind(words) is not None or any(word.startswith("conv") for word in words)
        return inside <= _ARRAYS and not known


def judged(tree: Any) -> list[Judgement]:
    """How each leaf of a tree is seen, `None` leaves included."""

    def is_leaf(x: Any) -> bool:
        return x is None or isinstance(x, MaskedNode)

    treedef: Any
    values, treedef = jax.tree.flatten(tree, is_leaf=is_leaf)
    paths = gtree.Flat(treedef.unflatten(range(len(values))), values, treedef).paths
    whole = _Tree(paths)
    pairs = zip(paths, values, strict=True)
    return [_judged(whole, path, x) for path, x in pairs if not isinstance(x, MaskedNode)]


def _judged(tree: _Tree, path: str, x: Any) -> Judgement:
    if x is None:
        return Judgement(None, "")
    rank = jnp.ndim(x)
    if rank < 2:
        return Judgement(None, "fewer than two axes")
    segments = path.split("/")
    every_word = [word for segment in segments for word in _words(segment)]
    found = {_kind(_words(segment)) for segment in segments}
    for kind in _LAST_WORDS:
        if kind in found and not (kind == "a head" and tree.in_attention(segments)):
            return Judgement(None, kind)
    outputs_first = segments[-1] == "weight"
    if rank > 2 and any(word.startswith("conv") for word in every_word):
        if outputs_first:  # the window before the channels, as in other kernels
            return Judgement(MatrixAxes((*range(2, rank), 1), 0), "a convolution")
        return Judgement(MatrixAxes(tuple(range(rank - 1)), rank - 1), "a convolution")
    if rank == 2:
        last = tree.last(segments)
        if last == "head":
            return Judgement(None, "a head")
        axes, why = MatrixAxes(0, 1), "two axes"
        if outputs_first:
            axes, why = MatrixAxes(1, 0), "two axes, outputs first"
        return Judgement(axes, why, last == "perhaps")
    if outputs_first:
        return Judgement(MatrixAxes(-1, -2), "a stack of matrices, outputs first")
    if any(_name(segment) in _INTO_HEADS for segment in segments):
        return Judgement(MatrixAxes(-3, (-2, -1)), "heads side by side in the columns")
    if tree.out_of_heads(segments):
        return Judgement(MatrixAxes((-3, -2), -1), "heads side by side in the rows")
    return Judgement(MatrixAxes(-2, -1), "a stack of matrices")


def reasons(choice: Any, flat: gtree.Flat, where: str, name: str) -> dict[str, str]:
    """Path to the reason why the leaf is a matrix or not, and the shape of its matrices."""
    said = {}
    found = matrices(choice, flat, where, name, stacked=True)
    judgements = judged(flat.tree)
    for path, m, judgement in zip(flat.paths, found, judgements, strict=True):
        why = judgement.why if choice is matrices_by_name else f"by {name}"
        if m is not None:
            count = f"{m.shape[0]} of " * (m.shape[0] > 1)
            why = f"{why}: {count}{m.rows}×{m.columns}"
            if choice is matrices_by_name and judgement.in_doubt:
                why = f"{why}; WARNING: perhaps the head, which {name}=… can leave to the fallback"
        said[path] = why
    return said


@core.registered
def matrices_by_name(params: Any) -> Any:
    r"""Which leaves are matrices, as far as paths and shapes can tell: the default of `muon`.

    What a leaf is depends on its shape and on the paths of the whole tree, not on its values, nor
    on which leaves have a gradient or are hidden by a mask.

    A leaf is no matrix if it has fewer than two axes, or if the last word of a segment of its path
    says that it is

    * an embedding: ``embed``, ``embedding(s)``, ``embedder``, ``emb``, ``wte``, ``wpe``, ``vocab``,
      ``token(s)``, ``pos``, ``position(s)``; or the first word is ``embed`` or ``embedding``, and
      ``in``, ``out``, ``tokens``, ``table``, ``positions``, ``matrix`` or ``weights`` follows;
    * a head: ``head``, ``logits``, ``unembed``, ``unembedding``, ``readout``, ``classifier``; or
      the first word is ``logits``; but not inside an ``attention``, ``attn`` or ``mha``;
    * a bias, a scale or a norm: ``bias``, ``scale``, ``norm``, ``layernorm``, ``rmsnorm``,
      ``batchnorm``, ``groupnorm``, ``bn``, ``ln``.

    Words end at ``_``, at digits and where capitals begin (``LayerNorm_0``); digits and single
    letters do not count (``head_2``, ``ln_f``). So ``lm_head`` is a head, and ``token_mixer``,
    ``multi_head_attention`` and ``scale_net`` are none of these.

    A layer called ``cls``, ``decoder``, ``fc``, ``out``, ``output(s)`` or ``predictions`` is the
    head, too, if it is the model's last one: it holds the leaf itself, it is no part of a block,
    and no further one of its series follows (``fc1`` is followed by ``fc2``). So ``output/kernel``
    is a head, and ``decoder/layers_0/kernel`` and ``layer_0/output/dense/kernel`` are not. Where
    this cannot be told, as for the last of ``Dense_0`` and ``Dense_1`` in a tree without any head,
    the leaf is a matrix, and `describe` warns of it.

    Every other leaf with two axes is a matrix, (inputs, outputs). A leaf with more axes is

    * one matrix, (window, inputs, outputs), below a word that begins with ``conv``;
    * a matrix with its heads side by side, if an attention has them in an axis of their own
      (``query``, ``k``, ``qkv``, …; ``out`` or ``o`` beside one of these or in an ``attention``);
    * else a stack of matrices, in its last two axes.

    A leaf called ``weight`` has its outputs first, as in Equinox and PyTorch: (outputs, inputs),
    (outputs, inputs, window), and stacks of (outputs, inputs).

    Args:
      params: the parameters, or anything with their shapes.

    Returns:
      A tree like them of `MatrixAxes`, with None for what is no matrix.

    Example:
      >>> import gradx, jax.numpy as jnp
      >>> params = {"embed": jnp.ones((9, 4)), "mlp": jnp.ones((4, 8)), "bias": jnp.ones(4)}
      >>> gradx.matrices_by_name(params)
      {'bias': None, 'embed': None, 'mlp': MatrixAxes(rows=0, columns=1, parts=1)}

    Deviation from Optax, whose `muon` takes every leaf with two axes for a matrix, embeddings and
    heads as well, and no leaf with more. To get that, pass a function: ``lambda params:
    jax.tree.map(lambda x: gradx.MatrixAxes() if x.ndim == 2 else None, params)``.
    """
    return gtree.flatten(params).unflatten([judgement.axes for judgement in judged(params)])
