"""Errors for a call that does not fit its function: which argument is wrong, and what was meant.

Users of PyTorch, Keras or DeepSpeed know other names. Two tables say what these are in gradx. The
advice depends on the function: `betas` are `b1` and `b2` only where a function has both.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import optax

from gradx.core.show import show
from gradx.core.suggestions import nearest

# Names of other libraries, and names here: the first one that the function has is meant.
RENAMED: dict[str, str] = {
    "lr eta base_lr initial_learning_rate": "learning_rate init_value step_size",
    "learning_rate": "init_value step_size",
    "alpha": "decay learning_rate",
    "max_lr": "peak_value",
    "eta_min min_lr end_learning_rate": "end_value",
    "T_max total_steps total_iters max_steps": "decay_steps transition_steps",
    "num_warmup_steps": "warmup_steps",
    "beta beta1 beta_1 momentum": "b1 beta momentum decay",
    "beta2 beta_2": "b2 rho decay",
    "beta3 beta_3": "b3",
    "rho": "decay b2",
    "gamma": "decay_rate decay",
    "epsilon": "eps",
    "wd l2 decoupled_weight_decay weight_decay_rate": "weight_decay",
    "clip_norm max_grad_norm": "max_norm",
}

DECAY = (
    "for L2 decay, added to the gradient as in PyTorch, put a piece before it: "
    "chain(add_decayed_weights({v}), {f}(…)); decoupled weight decay, as in AdamW, is an argument "
    "of adamw and others"
)
NORM = "to clip by the global norm, put a piece before it: chain(clip_by_global_norm({v}), {f}(…))"

# Names of what is no argument here: the arguments that a function must have for the advice to fit
# ("" is for all that make an optimizer, or a part of one), and the advice. `{f}` is the function,
# `{v}` the value, `{v0}` the first part of the value.
PIECES: dict[str, dict[str, str]] = {
    "betas": {
        "b1 b2 b3": "give b1={v0}, b2={v1}, b3={v2}",
        "b1 b2": "give b1={v0}, b2={v1}",
        "decay": "give decay={v0}",
    },
    "weight_decay wd l2": {"": DECAY},
    "end_value eta_min min_lr end_learning_rate": {
        "init_value alpha": "give alpha={v} / init_value, the share of it that is left at the end"
    },
    "learning_rate lr": {
        "inner_factory": "name it in the second call, {f}(…)(learning_rate={v})",
        "": "put a piece after it: chain({f}(…), scale_by_learning_rate({v}))",
    },
    "global_clipnorm clip_norm max_grad_norm gradient_clipping grad_clip": {"": NORM},
    "clipnorm": {"": f"Keras clips each array by its own norm, gradx all by one; {NORM}"},
    "clipvalue": {"": "to clip each number, put a piece before it: chain(clip({v}), {f}(…))"},
    "amsgrad": {"b1 b2": "it is an optimizer of its own, amsgrad(…)"},
    "maximize": {"": "to maximize, negate the gradients: chain(scale(-1.0), {f}(…))"},
    "foreach fused capturable differentiable jit_compile": {
        "": "leave it out, since jax.jit fuses the whole step"
    },
    "gradient_accumulation_steps": {"": "wrap it, MultiSteps({f}(…), every_k_schedule={v})"},
    "decay": {"learning_rate": "give a schedule as learning_rate, such as exponential_decay(…)"},
    "params parameters model var_list": {
        "": "an optimizer is made without the parameters, which {f}(…).init(params) is given"
    },
}


def fit(
    signature: inspect.Signature, who: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """`signature.bind`, with errors for somebody who does not know the function yet.

    Raises:
      TypeError: the call does not fit; the message names the function, the argument and a remedy.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        pass  # Python's error would be shown before this one
    raise TypeError(" ".join(_sentences(signature, who, args, kwargs)))


def _sentences(
    signature: inspect.Signature, who: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Iterator[str]:
    parameters = signature.parameters.values()
    by_place = [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    by_name = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    stars = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    placed = by_place[: len(args)]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [] if any_name else [name for name in kwargs if name not in by_name]
    if unknown:
        word = unknown[0]
        meant = _meant(word, kwargs[word], signature, who, by_name)
        yield f"{who} has no argument {word!r}{meant}"
    elif twice := [name for name in placed if name in kwargs]:
        by_its_place = show(args[placed.index(twice[0])])
        yield f"{who} is given {twice[0]} twice, {by_its_place} by place and"
        yield f"{show(kwargs[twice[0]])} by name."
    elif len(args) > len(by_place) and not stars:
        yield f"{who} takes {len(by_place)} arguments by place and is given {len(args)}. Give"
        yield "them by name, so that none is taken for another one."
    else:
        needed = [p.name for p in parameters if p.default is p.empty and p.kind <= p.KEYWORD_ONLY]
        missing = [p for p in needed if p not in (*placed, *kwargs, *stars)]
        yield f"{who} needs {', '.join(missing)}."
    if placed[:1] == ["learning_rate"] and is_tree(args[0]):
        yield "The parameters are no argument of an optimizer: tx.init(params) is given them."
    names = [*(n for n in by_place if n not in by_name), *(f"*{n}" for n in stars), *by_name]
    yield f"It takes {', '.join(names) or 'no arguments'}."


def _meant(
    word: str, value: Any, signature: inspect.Signature, who: str, names: Sequence[str]
) -> str:
    """The advice for an argument that the function does not have."""
    renamed = [name for name in _entry(RENAMED, word, "").split() if name in names]
    if renamed:
        return f": did you mean {renamed[0]}?"
    returned = signature.return_annotation
    is_factory = isinstance(returned, type) and issubclass(returned, optax.GradientTransformation)
    parts = value if isinstance(value, list | tuple) else ()
    words = {"f": who.split(" > ")[-1], "v": show(value)}
    words |= {f"v{i}": show(part) for i, part in enumerate(parts)}
    for needed, advice in _entry(PIECES, word, {}).items():
        fits = set(needed.split()) <= set(names) if needed else names and is_factory
        wants_more = bool(parts) and f"{{v{len(parts)}}}" in advice  # than the value has
        if fits and not wants_more:
            return f": {advice.format_map(defaultdict(lambda: '…', words))}."
    if not names:
        return ": name it in one of its parts."
    near = nearest(word, names)
    return "." if near is None else f": did you mean {near}?"


def _entry(table: Mapping[str, Any], word: str, default: Any) -> Any:
    return next((entry for words, entry in table.items() if word in words.split()), default)


def is_tree(value: Any) -> bool:
    """Whether this is a tree of arrays or an iterator over them, and not one number or several."""
    if isinstance(value, Iterator):
        return True
    if isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value):
        return False
    return bool(jax.tree.leaves(value)) and not jax.tree_util.all_leaves([value])
