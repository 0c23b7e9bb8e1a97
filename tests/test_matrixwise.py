"""Leaves as matrices, the lift for them, and the polynomials: what the laws do not ask."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import first_of
from problems import assert_close, assert_same

import gradx
from gradx.linalg import polar


def numbers(seed: int, *shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def made(tx: Any, g: Any) -> Any:
    return jax.jit(lambda g: tx.update(g, tx.init(g), g)[0])(g)


# ---------------------------------------------------------------- polynomials

BANDS = {
    "standard": (0.470, 1.203),
    "dion": (0.474, 1.146),
    "polar_express": (0.846, 1.124),
    "polar_express_safe": (0.728, 1.124),
    "modded_nanogpt": (0.846, 1.142),
    "cans": (0.946, 1.054),
    "cubic": (0.007, 1.000),
    "deepseek": (0.999, 1.001),
}


@pytest.mark.parametrize("preset", polar.NS_PRESETS)
def test_each_preset_ends_in_its_band(preset: str) -> None:
    """For singular values of a thousandth of the largest and more; and the matrix obeys it too."""
    steps = polar.NS_PRESETS[preset]
    low, high = BANDS[preset]
    after = polar.singular_values_after(steps, np.linspace(1e-3, 1, 100_001))
    assert low <= after.min() < low + 0.002
    assert high - 0.002 < after.max() <= high
    u, _, vh = np.linalg.svd(numbers(0, 6, 9, dtype=np.float64), full_matrices=False)
    s = np.geomspace(1e-3, 1, 6)
    with jax.enable_x64(True):
        x = jnp.asarray(u * s @ vh)
        for gram in (False, True):
            x_after = polar.newton_schulz(x, jnp.asarray(steps), gram=gram)
            assert_close(x_after, u * polar.singular_values_after(steps, s) @ vh, rtol=1e-10)


def test_gram_is_chosen_where_it_saves() -> None:
    plain, gram = polar.operations(512, 2048, 5)
    assert gram / plain == pytest.approx(2 / 3)  # 60 n³ of 90 n³
    plain, gram = polar.operations(512, 512, 5)
    assert gram > plain
    x = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    steps = jnp.asarray(polar.NS_PRESETS["standard"])
    costs = [
        jax.jit(lambda x, gram=gram: polar.newton_schulz(x, steps, gram=gram))
        .lower(x)
        .compile()
        .cost_analysis()["flops"]
        for gram in (False, True, None)
    ]
    assert costs[1] == costs[2] < 0.7 * costs[0]


def test_products_in_bfloat16_are_added_up_in_float32() -> None:
    g = numbers(0, 32, 48)
    exact = made(gradx.scale_by_muon(), g)
    rough = made(gradx.scale_by_muon(dtype=jnp.bfloat16), g)
    assert rough.dtype == jnp.float32
    assert 0 < np.abs(rough - exact).max() < 0.05


def test_the_exact_factor_is_orthogonal_also_of_low_rank() -> None:
    g = numbers(0, 5, 8)
    u = made(gradx.scale_by_muon("exact"), g)
    assert_close(u @ u.T, np.eye(5), rtol=2e-6)
    low = numbers(1, 5, 2) @ numbers(2, 2, 8)
    u = made(gradx.scale_by_muon("exact"), low)
    assert_close(np.linalg.svd(u)[1], np.array([1, 1, 0, 0, 0]), rtol=1e-5)


# ---------------------------------------------------------------- leaves as matrices


def test_names_and_shapes_say_what_is_a_matrix() -> None:
    axes = gradx.MatrixAxes
    leaves = {
        "layers/bias": ((3, 4), None),
        "norm/scale": ((4,), None),
        "mlp/kernel": ((4, 8), axes(0, 1)),
        "mlp/weight": ((8, 4), axes(1, 0)),
        "mlp/w": ((4, 8), axes(0, 1)),
        "weight/kernel": ((4, 8), axes(0, 1)),
        "Conv_0/kernel": ((3, 3, 4, 8), axes((0, 1, 2), 3)),
        "conv2d/weight": ((8, 4, 3, 3), axes((2, 3, 1), 0)),
        "Conv_1/kernel": ((4, 8), axes(0, 1)),
        "attention/query/kernel": ((8, 2, 4), axes(-3, (-2, -1))),
        "attention/q_proj/kernel": ((8, 2, 4), axes(-3, (-2, -1))),
        "attention/out/kernel": ((2, 4, 8), axes((-3, -2), -1)),
        "mlp/out/kernel": ((2, 4, 8), axes(-2, -1)),
        "q_net/kernel": ((3, 4, 8), axes(-2, -1)),
        "layers/mlp/kernel": ((3, 4, 8), axes(-2, -1)),
        "layers/mlp/weight": ((3, 8, 4), axes(-1, -2)),
        "attention/q_proj/weight": ((3, 8, 4), axes(-1, -2)),
    }
    params = {path: jnp.zeros(shape) for path, (shape, _) in leaves.items()}
    found = gradx.matrices_by_name(params)
    assert found == {path: said for path, (_, said) in leaves.items()}


def test_a_segment_is_what_its_last_word_says() -> None:
    matrices = """
        multi_head_attention/query/w  attn_head_mix  token_mixer  position_wise_ffn  time_embed_mlp
        scale_net  heads  heads_mixer/kernel  overhead  head_mixer  MultiHeadDotProductAttention_0/w
        attention/head/kernel  self_attn/head_2  mha/head  SelfAttention_0/logits  NormalMLP_0/w
        embed_mlp  upscale  mlp_1/0/kernel  0
    """
    others = """
        embed/embedding  embed  Embed_0/w  word_embeddings  embedder  pos_emb  wte  wpe  vocab
        token  cls_token  tokens  pos  position  positions  embed_tokens/w  embed_in  embed_out
        embedding_table  embed_positions  embedding_matrix  embed_weights  attention/pos_emb
        head  lm_head/kernel  LMHead  head_2  head2  logits  unembed  unembedding  readout
        classifier
        Classifier_0/kernel  decoder/lm_head/weight  decoder/attn/bias
        LayerNorm_0/w  RMSNorm  BatchNorm_3/w  GroupNorm  layernorm  post_attention_layernorm/weight
        rmsnorm  batchnorm  groupnorm  q_norm  norm  norm1/w  ln_f/w  ln_1  bn  layer_scale  scale
        relative_attention_bias
    """
    params = {name: jnp.zeros((4, 8)) for name in (matrices + others).split()}
    found = gradx.matrices_by_name(params)
    assert [name for name in matrices.split() if found[name] is None] == []
    assert [name for name in others.split() if found[name] is not None] == []


@pytest.mark.full
def test_a_weight_with_outputs_first_is_a_kernel_turned() -> None:
    """As in Equinox and PyTorch; the size of the step depends on which side is which."""
    tx = gradx.muon(0.1)
    kernels = {
        "mlp": {"kernel": numbers(0, 4, 8)},
        "conv": {"kernel": numbers(1, 3, 2, 4, 8)},
        "stack": {"kernel": numbers(2, 3, 4, 8)},
    }
    orders = {"mlp": (1, 0), "conv": (3, 2, 0, 1), "stack": (0, 2, 1)}
    weights = {k: {"weight": kernels[k]["kernel"].transpose(orders[k])} for k in orders}
    u, turned = made(tx, kernels), made(tx, weights)
    for k, order in orders.items():
        assert_close(turned[k]["weight"], u[k]["kernel"].transpose(order), rtol=2e-6)


@pytest.mark.parametrize(
    ("axes", "shape", "apart"),
    [
        (gradx.MatrixAxes(-2, -1), (3, 4, 6), lambda x: [x[0], x[1], x[2]]),
        (gradx.MatrixAxes(0, 1, parts=3), (4, 18), lambda x: [x[:, :6], x[:, 6:12], x[:, 12:]]),
        (gradx.MatrixAxes(0, 2), (4, 3, 6), lambda x: [x[:, 0], x[:, 1], x[:, 2]]),
        (gradx.MatrixAxes(1, 0), (6, 4), lambda x: [x.T]),
        (gradx.MatrixAxes((0, 1, 2), 3), (3, 2, 2, 5), lambda x: [x.reshape(12, 5)]),
    ],
    ids=["layers", "qkv", "heads", "turned", "convolution"],
)
def test_a_leaf_of_matrices_is_as_each_alone(axes: Any, shape: Any, apart: Any) -> None:
    g = numbers(0, *shape)
    together = made(gradx.scale_by_muon(weight_dimension_numbers=axes), g)
    alone = [made(gradx.scale_by_muon(), x) for x in apart(g)]
    assert_close(apart(np.asarray(together)), alone, rtol=2e-6)


def test_shapes_are_stacked_once_however_many_leaves() -> None:
    """Also those that stand on their other side."""
    seen = []

    def rule(g: Any, s: Any, p: Any, h: Any) -> Any:
        seen.append(g.shape)
        return g, s

    g = {f"w{i}": jnp.ones((4, 6) if i % 2 else (6, 4)) for i in range(10)} | {
        "v": jnp.ones((4, 4))
    }
    tx = gradx.matrixwise(rule, either_way=True)
    u = made(tx, g)
    assert sorted(set(seen)) == [(4, 4), (4, 6)]
    assert_same(u, g)


@pytest.mark.full
def test_chunks_change_memory_only() -> None:
    g = {f"w{i}": numbers(i, 16, 24) for i in range(5)}
    assert_close(made(gradx.scale_by_muon(chunk=2), g), made(gradx.scale_by_muon(), g), rtol=1e-6)


def test_chunks_of_matrices_with_an_empty_state() -> None:
    g = {f"w{i}": numbers(i, 6, 4) for i in range(5)}
    of = {chunk: gradx.scale_by_shampoo(graft="sgd", chunk=chunk) for chunk in (None, 2)}
    assert any(x.size == 0 for x in jax.tree.leaves(of[2].init(g)))
    assert_close(made(of[2], g), made(of[None], g), rtol=1e-5)


# ---------------------------------------------------------------- shared by devices


@first_of("kind", ["Auto", "Explicit"])
def test_devices_share_the_matrices(kind: str) -> None:
    """Each does an eighth of the products; what is not a multiple of eight is filled up."""
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with jax.enable_x64(True):
        g = jax.device_put(
            {f"w{i}": numbers(i, 32, 32, dtype=np.float64) for i in range(15)}, everywhere
        )
        flops, results = [], []
        for share in (False, gradx.Share(mesh, "d")):
            tx = gradx.scale_by_muon(share=share)
            update = jax.jit(tx.update, out_shardings=everywhere)
            results.append(update(g, tx.init(g))[0])
            flops.append(update.lower(g, tx.init(g)).compile().cost_analysis()["flops"])
    assert_close(results[1], results[0], rtol=1e-12)
    assert flops[1] < 0.2 * flops[0]


# ---------------------------------------------------------------- Muon


@pytest.mark.full
def test_embeddings_and_heads_are_left_to_adam() -> None:
    params = {"embed": jnp.ones((9, 4)), "mlp": jnp.ones((4, 4)), "head": jnp.ones((4, 9))}
    adam = gradx.adam(0.1)
    u, _ = gradx.muon(0.1).update(params, gradx.muon(0.1).init(params), params)
    alone, _ = adam.update(params, adam.init(params), params)
    assert_close([u["embed"], u["head"]], [alone["embed"], alone["head"]], rtol=1e-6)
    # Optax's choice, as `matrices_by_name` tells it, and a chain of one's own for the others.
    convolution = {"conv": numbers(0, 3, 3, 4, 8)}
    everything = gradx.muon(
        0.1,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda x: gradx.MatrixAxes() if x.ndim == 2 else None, params
        ),
        adam_nesterov=True,
    )
    theirs = optax.contrib.muon(0.1)
    assert_close(
        made(everything, params | convolution), made(theirs, params | convolution), rtol=1e-5
    )
    frozen = gradx.muon(0.1, fallback=gradx.set_to_zero())
    assert not made(frozen, params)["embed"].any()


def test_adam_looks_ahead_only_if_it_is_asked() -> None:
    params = {"b": jnp.ones(3)}
    theirs = made(optax.contrib.muon(0.1), params)
    assert_close(made(gradx.muon(0.1, adam_nesterov=True), params), theirs, rtol=1e-5)
    assert np.abs(made(gradx.muon(0.1), params)["b"] - theirs["b"]).max() > 0.01


@pytest.mark.parametrize("size", [1e-6, 1e4, 1e15])
def test_the_size_of_the_gradient_does_not_matter(size: float) -> None:
    g = numbers(0, 4, 6)
    tx = gradx.scale_by_muon(eps=0.0)
    assert_close(made(tx, g * np.float32(size)), made(tx, g), rtol=2e-6)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_vector_becomes_a_unit_vector(shape: Any) -> None:
    g = numbers(0, *shape)
    assert_close(made(gradx.scale_by_muon("exact"), g), g / np.linalg.norm(g), rtol=2e-6)


def test_a_transposed_matrix_has_the_transposed_update() -> None:
    g = numbers(0, 4, 6)
    assert_close(made(gradx.scale_by_muon(), g.T), made(gradx.scale_by_muon(), g).T, rtol=2e-6)


def always_done(jaxpr: Any) -> set[str]:
    """The operations of a program that are not in a branch of a conditional."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    found = {eqn.primitive.name for eqn in inner.eqns}
    for eqn in inner.eqns:
        if eqn.primitive.name != "cond":
            for part in eqn.params.values():
                if hasattr(getattr(part, "jaxpr", part), "eqns"):
                    found |= always_done(part)
    return found


def test_an_expensive_step_is_skipped_by_a_conditional() -> None:
    """Between the updates of MultiSteps nothing is orthogonalised."""
    p = {"w": jnp.ones((8, 8))}
    tx = gradx.MultiSteps(gradx.muon(0.1), 4)
    done = always_done(jax.make_jaxpr(tx.update)(p, tx.init(p), p))
    assert "cond" in done
    assert "dot_general" not in done


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"ns_coeffs": "quintic"}, "ns_coeffs must be .*polar_express"),
        ({"ns_coeffs": (1.0, 2.0)}, "three finite numbers"),
        ({"ns_coeffs": ((1.0, 2.0, 3.0),) * 4}, "ns_steps is 5"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"preconditioning": "l1"}, "preconditioning must be one of"),
        ({"chunk": 0}, "chunk"),
        ({"dtype": int}, "dtype"),
        ({"share": "d"}, "share must be a Share"),
    ],
)
def test_bad_arguments_are_refused(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"scale_by_muon: .*{message}"):
        gradx.scale_by_muon(**kwargs)


def test_a_mesh_without_the_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="axis 'model', and must"):
        gradx.muon(0.1, share=gradx.Share(jax.make_mesh((8,), ("d",)), "model"))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (gradx.by_path({"mpl": gradx.MatrixAxes()}, default=None), "mpl"),
        (
            gradx.by_path({"mlp": gradx.MatrixAxes(0, 2)}, default=None),
            "mlp.*each axis of the shape",
        ),
        (
            gradx.by_path({"mlp": gradx.MatrixAxes(0, 0)}, default=None),
            "mlp.*each axis of the shape",
        ),
        (gradx.by_path({"mlp": gradx.MatrixAxes(0, 1, 3)}, default=None), "mlp.*parts"),
        (gradx.by_path({"mlp": (0, 1)}, default=None), "mlp"),
        (
            gradx.MatrixAxes(1.0, 0),
            "muon: .*_numbers: at 'mlp' the axes must be whole.*got MatrixAxes.rows=1.0",
        ),
        (gradx.MatrixAxes(None, 1), "at 'mlp' the axes must be whole"),
        (gradx.MatrixAxes(0, "x"), "at 'mlp' the axes must be whole"),
        (gradx.MatrixAxes((0, 1.0), 1), "at 'mlp' the axes must be whole"),
        (gradx.MatrixAxes(0, True), "at 'mlp' the axes must be whole"),
        (gradx.MatrixAxes(0, 1, True), "at 'mlp' .*parts must be a whole"),
        (gradx.MatrixAxes(0, 1, 1.5), "at 'mlp' .*parts must be a whole"),
        (gradx.MatrixAxes(0, 1, 0), "at 'mlp' parts must be a whole"),
    ],
)
def test_axes_that_do_not_fit_are_refused_by_path(axes: Any, message: str) -> None:
    params = {"mlp": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=message):
        gradx.muon(0.1, muon_weight_dimension_numbers=axes).init(params)


def test_numbers_of_numpy_are_whole_numbers() -> None:
    g = numbers(0, 4, 18)
    theirs = gradx.MatrixAxes(np.int32(0), (np.int64(1),), np.int64(3))
    tx = gradx.scale_by_muon(weight_dimension_numbers=theirs)
    same = gradx.scale_by_muon(weight_dimension_numbers=gradx.MatrixAxes(0, 1, 3))
    assert_same(made(tx, g), made(same, g))


def test_what_is_no_matrix_is_refused_by_path() -> None:
    with pytest.raises(ValueError, match=r"the leaf 'bias' of shape .* is no matrix"):
        gradx.scale_by_muon().init({"bias": jnp.ones(4)})
