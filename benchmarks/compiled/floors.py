"""The least that a step of each row can move, as arithmetic over the arrays that it needs.

A floor is written as passes, separated by ";". A pass is `reads -> writes`, by the names of arrays
like the parameters, of 4 bytes an element: `"g mu nu p -> mu nu p"`, AdamW's, is 28 bytes a
parameter. A second pass begins where a number of the whole leaf, or of the whole tree, has to be
known first: `"g; g mu nu p -> mu nu p"` clips before it. Numbers of rows and columns count as
nothing, and a row fits on the chip. `x:2` has 2 bytes an element; `A`, a capital, is the Gram
matrix of each matrix, on its shorter side; `5 * x -> A` is done five times. A note for the reader
follows "#". `none` is for a row without a floor, and its note says why.

A program is the same in every step. So if one step has to write an array, all steps write it. On
TPUs a program can be below its floor: a leaf may stay on the chip (in VMEM) between two passes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from benchmarks import trees

_ARRAY = re.compile(r"([A-Za-z]\w*)(?::(\d))?")
_TIMES = re.compile(r"(\d+) \* (.*)", re.DOTALL)


@dataclass(frozen=True)
class Floor:
    """A parsed floor.

    Attributes:
      likes: bytes an element of the parameters.
      grams: bytes an element of the Gram matrices.
      note: a note for the reader.
    """

    likes: int
    grams: int
    note: str

    def per_parameter(self, shapes: trees.Shapes) -> float:
        """Bytes a parameter on a tree."""
        leaves = trees.leaves(shapes)
        grams = sum(min(shape) ** 2 for shape in leaves if len(shape) == 2)
        return self.likes + self.grams * grams / sum(math.prod(shape) for shape in leaves)


def parse(text: str) -> Floor | None:
    """The sum of a floor's passes; None for `none`. Raises ValueError if the text is no floor."""
    arithmetic, _, note = text.partition("#")
    if arithmetic.strip() == "none":
        if not note.strip():
            raise ValueError("a row without a floor says why: 'none # why'")
        return None
    likes = grams = 0
    for part in arithmetic.split(";"):
        repeated = _TIMES.fullmatch(part.strip())
        times, arrays = (int(repeated[1]), repeated[2]) if repeated else (1, part)
        words = arrays.replace("->", " ", 1).split()
        if not words:
            raise ValueError(f"a floor is 'reads -> writes; …' or 'none # why', got {text!r}")
        for word in words:
            array = _ARRAY.fullmatch(word)
            if array is None:
                raise ValueError(f"{word!r} is no array, in the floor {text!r}")
            size = times * int(array[2] or 4)
            likes, grams = (likes, grams + size) if word[0].isupper() else (likes + size, grams)
    return Floor(likes, grams, note.strip())


def why_none(text: str) -> str:
    """The reason why a row has no floor."""
    return text.partition("#")[2].strip()


SGD = "g p -> p"
MOMENTUM = "g mu p -> mu p"
ADAM = "g mu nu p -> mu nu p"
AVERAGED = "g mu nu mean p -> mu nu mean p"
THREE = "g mu nu more p -> mu nu more p"
NORM_FIRST = f"g; {SGD}"

# Five Newton–Schulz steps on an x in half precision: A = xxᵀ, B = bA + cAA, x = ax + Bx.
STEPS = "5 * x:2 -> A:2; 5 * A:2 -> B:2; 5 * B:2 x:2 -> x:2"
MUON = f"g mu -> mu x:2; {STEPS}; x:2 p -> p # the plain iteration in bfloat16"

RENEWED = "none # its bases are renewed under a conditional, which counts once, and in loops"

# In the order of `cases.CASES`.
FLOORS = {
    "sgd": SGD,
    "sgd momentum": MOMENTUM,
    "sgd nesterov": MOMENTUM,
    "noisy_sgd": SGD,
    "adam": ADAM,
    "adamw": ADAM,
    "nadam": ADAM,
    "nadamw": ADAM,
    "amsgrad": THREE,
    "adamax": ADAM,
    "adamaxw": ADAM,
    "radam": ADAM,
    "adabelief": ADAM,
    "yogi": ADAM,
    "adagrad": MOMENTUM,
    "adadelta": ADAM,
    "rmsprop": MOMENTUM,
    "rmsprop centered": ADAM,
    "rmsprop momentum": ADAM,
    "adan": "g mu delta nu last p -> mu delta nu last p",
    "acprop": ADAM,
    "adopt": ADAM,
    "ademamix": THREE,
    "simplified_ademamix": ADAM,
    "optimistic_gradient_descent": "g last p -> last p",
    "optimistic_adam": "g mu nu last p -> mu nu last p",
    "optimistic_adam_v2": "g mu nu last p -> mu nu last p",
    "rprop": "g sizes last p -> sizes last p",
    "sign_sgd": SGD,
    "signum": MOMENTUM,
    "lion": MOMENTUM,
    "lars": "g p; g p trace -> trace p # norms of gradients and parameters",
    "lamb": "g mu nu p -> mu nu; mu nu p -> p # norms of Adam's updates and of parameters",
    "fromage": "g p; g p -> p",
    "novograd": "g; g mu p -> mu p",
    "adafactor": "g p; g; g p -> p # rows and columns, the RMS of what they give, the update",
    "adafactor momentum": "g p; g; g mu p -> mu p",
    "sm3": "g mu p -> mu p",
    "sophia": "g mu hessian p -> mu p # the others of ten steps estimate",
    "galore": "g; p -> p # without its states of rank 64, and the choice of directions",
    "dog": "g p start; g p -> p",
    "dowg": "g p start; g p -> p",
    "scale_by_distance_over_gradients": "g p start; g p -> p",
    "prodigy": "g sum p start -> sum; g mu nu p -> mu nu p",
    "dadapt_adamw": "g mu nu sum p -> mu nu sum p # the rate that a step measures is for the next",
    "polyak_sgd": NORM_FIRST,
    "momo": "g mu p -> mu; mu p -> p",
    "momo_adam": "g mu nu p -> mu nu; mu nu p -> p",
    "madgrad": "g sum nu start p -> sum nu p",
    "cocob": "g start scale sum reward stake p -> scale sum reward stake p",
    "MultiSteps(4)": "g mean mu nu p -> mean mu nu p",
    "MultiSteps(4), clipped": "g mean -> mean; mean mu nu p -> mu nu p",
    "apply_if_finite": f"g; {ADAM}",
    "conditionally_transform": ADAM,
    "conditionally_mask": ADAM,
    "inject_hyperparams(adamw)": ADAM,
    "inject_hyperparams(lion)": MOMENTUM,
    "snapshot + adamw": f"{ADAM} # the norm is of gradients that the pass reads",
    "adamw + apply_every(4)": "g mu nu sum p -> mu nu sum p",
    "sgd + keep_params_nonnegative": SGD,
    "schedule_free": "g z mu nu p -> z mu nu p # adamw keeps mu, though b1 is 0",
    "schedule_free_sgd": "g z p -> z p",
    "schedule_free_adamw": "g z nu p -> z nu p",
    "sam": "g; g cache mu nu p -> cache mu nu p # both kinds of steps, in one program",
    "asam": "g p; g cache mu nu p -> cache mu nu p # both kinds of steps, in one program",
    "look_sam": "g last; g last cache mu nu p -> last cache mu nu p # all kinds of steps",
    "flatten": f"{ADAM} # what is joined and cut again counts as nothing",
    "split_real_and_imaginary": ADAM,
    "mechanize": "g p start; g mu nu p start -> mu nu p start",
    "adamw + reduce_on_plateau": ADAM,
    "adamw + early_stopping": ADAM,
    "lbfgs": "none # how often the memory is read depends on how its recursion is arranged",
    "adam + clip_by_block_rms": "g mu nu -> mu nu; mu nu p -> p",
    "normalize_by_update_norm": NORM_FIRST,
    "clip_by_global_norm + adamw": f"g; {ADAM}",
    "sgd, 1,000 leaves": "g p -> p",
    "adamw, 1,000 leaves": ADAM,
    "clip + adamw, 1,000 leaves": f"g; {ADAM}",
    "clip + sgd": SGD,
    "adaptive_grad_clip + sgd": "g p; g p -> p # columns, which do not fit on the chip as rows do",
    "centralize + sgd": f"{SGD} # the mean of a row, which stays on the chip",
    "zero_nans + sgd": SGD,
    "scale_by_param_block_norm + sgd": "p; g p -> p",
    "muon": MUON,
    "polar express": MUON,
    "normuon": MUON,
    "adamuon": f"g mu -> mu x:2; {STEPS}; x:2 nu -> nu; x:2 nu p -> p",
    "scion": MUON,
    "dion": "none # the decompositions of its factors are calls, and move what they like",
    "dion2": "none # which rows take part is known in the run, and gathers count as whole arrays",
    "soap": RENEWED,
    "soap staggered": RENEWED,
    "splus": RENEWED,
    "kl_soap": RENEWED,
    "kl_shampoo": RENEWED,
    "shampoo": RENEWED,
    "psgd_kron": "none # its factors are renewed under a conditional, which counts once",
    "mars": "g last; g last mu nu p -> last mu nu p",
    "correct_by_mars + sgd": "g last; g last p -> last p",
    "cautious adamw": "g mu nu p; g mu nu p -> mu nu p",
    "adam + add_cautious_decay": ADAM,
    "grokfast + adamw": "g last mu nu p -> last mu nu p",
    "adamw + ema_params": AVERAGED,
    "adamw + ema_params(every=10)": f"{ADAM}; p mean -> mean # 16 stand under a condition",
    "adamw + swa_params": AVERAGED,
    "adamw + tail_ema_params": AVERAGED,
    "adamw + lawa_params": f"{ADAM}; 3 * p last -> last # 48 stand under conditions",
    "adamw + ema_nesterov": "g mu nu trend p -> mu nu trend p",
    "gpa": "g z mu nu p -> z mu nu p",
    "hyperball": "g mu nu p -> mu nu; mu nu p -> p",
    "zclip + adamw": f"g; {ADAM}",
    "adagc + adamw": f"g; {ADAM}",
    "skip_nonfinite": f"g; {ADAM}",
    "skip_spikes": f"g; {ADAM}",
    "restart_moments": ADAM,
    "adamw + qk_clip": ADAM,
    "selective_transform": ADAM,
}
