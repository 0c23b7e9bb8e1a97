"""What arguments mean: said once, checked, and written into docstrings."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradx
from gradx import core
from gradx.core.annotations import signature
from gradx.core.meaning import Number, Option
from gradx.core.vocabulary import meanings, numbers_of

SOURCES = Path(gradx.__file__).parent


def written_entries() -> Iterator[tuple[str, str, str]]:
    """What stands under ``Args:`` in the sources: factory, argument, text."""
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and core.REGISTRY.get(node.name) is not None:
                doc = ast.get_docstring(node) or ""
                section = re.search(r"^Args:\n((?:  .*\n)+)", doc + "\n", re.MULTILINE)
                for entry in re.split(r"\n(?=  \S)", section[1] if section else ""):
                    name, _, text = entry.strip().partition(": ")
                    yield node.name, name, " ".join(text.split())


def test_what_is_said_once_is_not_repeated() -> None:
    """Neither the general sentence, nor the range or the symbol of a number."""
    found = list(written_entries())
    assert len(found) > 400
    for factory, name, text in found:
        made = inspect.unwrap(core.REGISTRY[factory])
        meaning = meanings(made, signature(made).parameters).get(name)
        if meaning is None:
            continue
        place = f"{factory}: {name}: {text}"
        assert not (meaning.sentence and text.startswith(meaning.sentence)), place
        assert not (isinstance(meaning, Number) and re.search(r"\bin [\[(]-?\d", text)), place


def test_an_entry_has_sentence_symbol_range_and_default() -> None:
    doc = inspect.getdoc(gradx.adam) or ""
    sentence = "b1: how much of the average of gradients is kept each step; "
    assert sentence + r"\(\beta_1\) in [0, 1), 0.9 by default." in " ".join(doc.split())
    assert str(inspect.signature(gradx.scale_by_sm3)).startswith("(b1: 'Hyper' = 0.9, b2: 'Hyper'")


@core.recorded
def outside(
    b1: gradx.Hyper = 0.9,
    share: Annotated[gradx.Hyper, Number("[0, 1]", "s", "how much is mixed")] = 0.5,
    size: Annotated[float | None, Number("(0, inf)", sentence="the size")] = None,
    slow: Annotated[bool, Option("take all the time there is")] = False,
) -> gradx.Transform:
    """A factory of somebody else.

    Args:
      slow: Hurry is not supported.
      b1: my own word.

    Returns:
      A transformation.
    """
    return gradx.scale(1.0 if size is None else size)


def test_annotations_say_it_outside_gradx_and_names_do_not() -> None:
    assert set(numbers_of(inspect.unwrap(outside))) == {"share", "size"}
    assert (outside.__doc__ or "").split("\n\n")[1] == "\n".join(
        [
            "    Args:",
            "      b1: my own word.",
            "      share: how much is mixed; \\(s\\) in [0, 1], 0.5 by default.",
            "      size: the size; in (0, inf).",
            "      slow: take all the time there is. Hurry is not supported.",
        ]
    )


def test_a_docstring_without_arguments_is_given_them() -> None:
    def bare(share: Annotated[float, Number("[0, 1]", sentence="a share")] = 0.5) -> Any:
        """Says nothing.

        Returns:
          Nothing.
        """

    made = core.recorded(bare)
    assert "Args:\n          share: a share; in [0, 1], 0.5 by default.\n\n" in (made.__doc__ or "")


@core.recorded
def halved(rate: Annotated[gradx.Hyper, Number("[0, 1]")]) -> gradx.Transform:
    """Half a step."""
    return gradx.chain(gradx.scale(0.5), gradx.sgd(rate))


def four_spaces(share: Annotated[float, Number("[0, 1]")] = 0.5, **others: Any) -> Any:
    """Says it as many do.

    Args:
        share:
            how much is mixed.
        older: a name that it had.
        **others: more.
    """
    return gradx.scale(share)


def test_docstrings_in_other_forms_lose_nothing() -> None:
    made = core.recorded(four_spaces)
    assert core.recorded(four_spaces).__doc__ == made.__doc__
    assert (made.__doc__ or "").split("\n\n")[1].rstrip() == "\n".join(
        [
            "    Args:",
            "        share: how much is mixed; in [0, 1], 0.5 by default.",
            "        **others: more.",
            "        older: a name that it had.",
        ]
    )

    def unreadable(share: Annotated[float, Number("[0, 1]")] = 0.5) -> Any:
        """Has a table.

        Args:
        share  how much is mixed
        """

    assert core.recorded(unreadable).__doc__ == unreadable.__doc__


def test_the_signature_shows_the_type() -> None:
    def typed(a: Annotated[gradx.Hyper, Number("[0, 1]")] | None = None) -> Any: ...

    assert (
        str(inspect.signature(core.recorded(typed))) == "(a: 'gradx.Hyper | None' = None) -> 'Any'"
    )
    state = gradx.tunable(halved(0.5)).init(jnp.ones(1))
    assert gradx.hyperparams(state) == {"learning_rate": 0.5}


@core.recorded
def with_betas(
    betas: tuple[Annotated[gradx.Hyper, Number("[0, 1)")], ...] = (0.9,),
) -> gradx.Transform:
    """Has as many numbers as somebody wants."""
    hypers = {f"beta_{i}": beta for i, beta in enumerate(betas)}
    return gradx.leafwise(lambda g, s, p, h: (g * h.beta_0, s), hypers=hypers)


def test_the_numbers_of_a_tuple_are_checked() -> None:
    tx = with_betas((0.5, gradx.tunable(0.25)))
    state = tx.init(jnp.ones(1))
    assert gradx.hyperparams(state) == {"beta_1": 0.25}
    for value, bad in ((2.0, "2.0"), ("x", "'x'"), (gradx.tunable(1.0), "1.0")):
        with pytest.raises(ValueError, match=rf"^with_betas: betas\[1\] must be .* got {bad}"):
            with_betas((0.5, value))
    with pytest.raises(ValueError, match=r"beta_1 must be in \[0, 1\), got 1.5"):
        gradx.set_hyperparams(state, tx=tx, beta_1=1.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: outside(share=1.5), r"^outside: share must be in \[0, 1\], got 1.5"),
        (
            lambda: outside(share="half"),
            "^outside: share must be one real number, got 'half'. Give",
        ),
        (
            lambda: outside(share=gradx.tunable(2.0)),
            r"^outside: share must be in \[0, 1\], got 2.0",
        ),
        (
            lambda: outside(share=gradx.by_path({"a": 0.5, "b": -1.0}, default=0.0)),
            r"^outside: share\[b\] must be in \[0, 1\], got -1.0",
        ),
        (
            lambda: outside(share=gradx.scaled(2.0, 3.0)),
            r"^outside: share must be in \[0, 1\], got 6.0",
        ),
        (lambda: outside(size=0.0), r"^outside: size must be in \(0, inf\), got 0.0"),
        (lambda: outside(size=gradx.tunable(1.0)), "^outside: size must be one real number, got"),
        (lambda: outside(size=jnp.ones(2)), "^outside: size must be one real number, got"),
        (lambda: gradx.adam(None), "^adam: learning_rate must be one real number, got None"),
        (lambda: gradx.muon(0.1, adam_learning_rate=-1.0), "^muon: adam_learning.* To climb, put"),
        (lambda: gradx.sgd(0.1, momentum=lambda c: jnp.ones(3)), "^sgd: momentum is the schedule"),
        (lambda: gradx.sgd(0.1, momentum=1.5), r"^sgd: momentum must be in \[-1, 1\], got 1.5"),
    ],
)
def test_a_bad_number_is_refused_where_it_is_given(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_a_schedule_is_traced_once_for_all_factories_on_its_way() -> None:
    counts: list[Any] = []
    gradx.adamw(lambda count: counts.append(count) or 0.1)
    assert len(counts) == 1


@pytest.mark.parametrize("size", [2, np.float32(2), jnp.float32(2), jnp.array(2)])
def test_what_was_given_is_what_is_shown(size: Any) -> None:
    made = outside(size=size)
    assert repr(made) == f"outside(size={core.show(size)})"
    assert jax.tree.leaves(made.update(jnp.ones(1), made.init(jnp.ones(1)))[0])[0] == 2


def test_a_name_has_no_range_in_a_rule_of_somebody_else() -> None:
    """But for the names that every rule has."""
    rule = lambda g, s, p, h: (g * h.alpha, s)
    assert gradx.leafwise(rule, hypers={"alpha": -1.0})
    with pytest.raises(ValueError, match=r"b1 must be in \[0, 1\), got -1.0"):
        gradx.leafwise(rule, hypers={"b1": -1.0})


def test_a_live_number_remembers_the_range_of_each_factory_on_its_way() -> None:
    tx = gradx.adamw(0.1, weight_decay=gradx.tunable(0.1))
    state = tx.init(jnp.ones(1))
    with pytest.raises(ValueError, match=r"weight_decay must be in \[0, inf\), got -1.0"):
        gradx.set_hyperparams(state, tx=tx, weight_decay=-1.0)
    state = gradx.add_decayed_weights(gradx.tunable(-1.0)).init(jnp.ones(1))
    assert gradx.hyperparams(state) == {"weight_decay": -1.0}
