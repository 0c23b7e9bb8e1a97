"""AdEMAMix with the rules for matrices: a slow average of the gradients beside the other."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from cases import first_of
from matrix_runs import close, normal, run

import gradx

KL = {"precondition_frequency": 3, "eps": 1e-3}
UNCORRECTED = {"precondition_frequency": 3, "bias_correction": False}
# Factory, arguments, the name of its b1 (whose value is 1 minus that for Scion), and what the
# update is of twice the momentum.
RULES: list[tuple[Any, dict[str, Any], str, float]] = [
    (gradx.scale_by_muon, {"bias_correction": False, "nesterov": False, "eps": 0.0}, "beta", 1),
    (gradx.scale_by_normuon, {"eps": 0.0}, "b1", 1),
    (gradx.scale_by_adamuon, {"eps": 0.0, "nesterov": False}, "b1", 1),
    (gradx.scale_by_scion, {"eps": 0.0, "norms": "spectral"}, "momentum", 1),
    (gradx.scale_by_soap, UNCORRECTED, "b1", 2),
    (gradx.scale_by_splus, {"precondition_frequency": 3}, "b1", 1),
    (gradx.scale_by_kl_soap, KL, "b1", 2),
    (gradx.scale_by_kl_shampoo, KL, "b1", 2),
    (gradx.scale_by_shampoo, UNCORRECTED, "b1", 2),
    (gradx.scale_by_shampoo, {**UNCORRECTED, "graft": "none"}, "b1", 2),
]
# Not Shampoo's step with a graft, whose norm it has.
LINEAR = [
    (gradx.scale_by_soap, UNCORRECTED),
    (gradx.scale_by_kl_soap, KL),
    (gradx.scale_by_kl_shampoo, KL),
    (gradx.scale_by_shampoo, {**UNCORRECTED, "graft": "none"}),
]
one = first_of("factory, kwargs, name, twice", RULES, ids=[f.__name__ for f, *_ in RULES])


def made(factory: Any, kwargs: dict[str, Any], name: str, b1: float, **slow: Any) -> Any:
    given = 1 - b1 if name == "momentum" else b1
    return factory(**kwargs, **{name: given}, **slow)


@one
@pytest.mark.full
def test_without_weight_it_makes_no_difference(
    factory: Any, kwargs: dict[str, Any], name: str, twice: float
) -> None:
    grads = normal(7, 4, 3)
    slow = run(made(factory, kwargs, name, 0.9, b3=0.99, alpha=0.0), grads)[0]
    close(slow, run(made(factory, kwargs, name, 0.9), grads)[0], 1e-12)


@one
def test_as_slow_as_the_other_it_counts_twice(
    factory: Any, kwargs: dict[str, Any], name: str, twice: float
) -> None:
    grads = normal(7, 4, 3)
    slow = run(made(factory, kwargs, name, 0.9, b3=0.9, alpha=1.0), grads)[0]
    close(slow, twice * run(made(factory, kwargs, name, 0.9), grads)[0], 1e-9)


@first_of("factory, kwargs", LINEAR, ids=[f.__name__ for f, _ in LINEAR])
@pytest.mark.full
def test_what_is_linear_in_the_momentum_adds_the_two(factory: Any, kwargs: dict[str, Any]) -> None:
    """Each with the preconditioner that both have in common: it is made of the gradients alone."""
    grads = normal(8, 4, 3)
    fast, slow = (run(factory(b1=b, **kwargs), grads)[0] for b in (0.5, 0.99))
    both, state = run(factory(b1=0.5, b3=0.99, alpha=7.0, **kwargs), grads)
    close(both, fast + 7 * slow)
    assert state.mu.fast.shape == state.mu.slow.shape == (8, 4, 3)


def mixed(grads: Any, b3: float, alpha: float) -> Any:
    """What both averages make together, if the fast one is that of a single gradient."""
    made, slow = [], np.zeros_like(grads[0])
    for g in grads:
        slow = b3 * slow + (1 - b3) * g
        made.append(g + alpha * slow)
    return np.stack(made)


@first_of(
    "factory, kwargs",
    [
        (gradx.scale_by_muon, {"beta": 0.0, "nesterov": False}),
        (gradx.scale_by_psgd_kron, {"b1": 0.0, "probe": "expected"}),
    ],
)
@pytest.mark.full
def test_what_knows_the_momentum_alone_has_both_for_a_gradient(factory: Any, kwargs: Any) -> None:
    grads = normal(7, 4, 3)
    both = run(factory(b3=0.99, alpha=3.0, **kwargs), grads)[0]
    close(both, run(factory(**kwargs), mixed(grads, 0.99, 3.0))[0])


def test_in_the_identity_basis_it_is_ademamix() -> None:
    """From the second step on, which SOAP begins with."""
    grads = normal(12, 4, 3)
    soap = gradx.scale_by_soap(0.9, 0.999, max_precond_dim=0, b3=0.99, alpha=3.0)
    ademamix = gradx.scale_by_ademamix(b1=0.9, b2=0.999, b3=0.99, alpha=3.0)
    close(run(soap, grads)[0][1:], run(ademamix, grads[1:])[0])


# A number of the run is rounded to float32 and a constant is not, and each of the five steps of
# Newton and Schulz multiplies a small singular value, with its rounding, by more than three. How
# many roundings there are depends on what the compiler joins: 1.2e-6 was seen.
IN_FLOAT32 = 5e-6


def test_its_numbers_may_be_live_and_grow() -> None:
    warmup = gradx.linear_schedule(0.0, 5.0, 3)
    tx = gradx.scale_by_muon(b3=gradx.tunable(0.5), alpha=warmup)
    g = jnp.asarray(normal(3, 2, dtype=np.float32))
    state = tx.init(g)
    assert gradx.hyperparams(state) == {"b3": 0.5}
    state = gradx.set_hyperparams(state, b3=0.75)
    first, state = tx.update(g, state)
    close(first, gradx.scale_by_muon().update(g, gradx.scale_by_muon().init(g))[0], IN_FLOAT32)
    second = tx.update(-g, state)[0]
    constant = gradx.scale_by_muon(b3=0.75, alpha=5 / 3)
    _, state = constant.update(g, constant.init(g))
    close(second, constant.update(-g, state)[0], IN_FLOAT32)


@pytest.mark.parametrize("factory", [gradx.scale_by_muon, gradx.scale_by_soap])
def test_a_state_without_it_is_refused(factory: Any) -> None:
    g = {"w": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match="whose mu is of type dict instead of Averages"):
        factory(b3=0.9).update(g, factory().init(g))


def test_a_gradient_for_what_had_no_parameter_is_an_error() -> None:
    tx = gradx.scale_by_muon(b3=0.9)
    with pytest.raises(ValueError, match="'w' there is a gradient"):
        tx.update({"w": jnp.ones((3, 2))}, tx.init({"w": None}))


@pytest.mark.parametrize("factory", [gradx.muon, gradx.soap, gradx.scale_by_psgd_kron])
def test_a_weight_for_nothing_is_an_error(factory: Any) -> None:
    rate = () if factory is gradx.scale_by_psgd_kron else (0.1,)
    with pytest.raises(ValueError, match=r"alpha is the weight of the slow average.*Give it"):
        factory(*rate, alpha=3.0)
    with pytest.raises(ValueError, match=r"b3 must be in \[0, 1\), got 1.5"):
        factory(*rate, b3=1.5)
