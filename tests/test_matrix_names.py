"""Which leaves of real models are matrices, by their names."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import gradx
from gradx.contract import MaskedNode
from gradx.core import trees as gtree
from gradx.lift.matrix_names import judged

IN_ROWS, IN_COLUMNS = gradx.MatrixAxes((-3, -2), -1), gradx.MatrixAxes(-3, (-2, -1))
MATRIX, TURNED = gradx.MatrixAxes(0, 1), gradx.MatrixAxes(1, 0)
STACK, WINDOW = gradx.MatrixAxes(-2, -1), gradx.MatrixAxes((0, 1, 2), 3)
HEAD, EMBEDDING = "a head", "an embedding"
SMALL = "a bias, a scale or a norm"
PERHAPS = "perhaps"  # a matrix, of which `describe` says that it may be a head
PERHAPS_TURNED = "perhaps, outputs first"

# Model to path to (shape, how it is seen or why it is no matrix).
MODELS: dict[str, dict[str, tuple[tuple[int, ...], Any]]] = {
    "an attention under another name": {
        "att/query/kernel": ((16, 2, 8), IN_COLUMNS),
        "att/out/kernel": ((2, 8, 16), IN_ROWS),
        "mlp/out/kernel": ((2, 8, 16), STACK),
    },
    "an attention, alone": {
        "q": ((16, 2, 8), IN_COLUMNS),
        "k": ((16, 2, 8), IN_COLUMNS),
        "o": ((2, 8, 16), IN_ROWS),
    },
    "an attention of two axes, alone": {
        "query/kernel": ((16, 16), MATRIX),
        "out/kernel": ((16, 16), MATRIX),
    },
    "Flax linen: a language model": {
        "params/Embed_0/embedding": ((32, 8), EMBEDDING),
        "params/TransformerBlock_0/MultiHeadDotProductAttention_0/query/kernel": (
            (8, 2, 4),
            IN_COLUMNS,
        ),
        "params/TransformerBlock_0/MultiHeadDotProductAttention_0/out/kernel": ((2, 4, 8), IN_ROWS),
        "params/TransformerBlock_0/Dense_0/kernel": ((8, 32), MATRIX),
        "params/TransformerBlock_0/Dense_1/kernel": ((32, 8), MATRIX),
        "params/TransformerBlock_0/LayerNorm_0/scale": ((8,), "fewer than two axes"),
        "params/Dense_0/kernel": ((8, 32), PERHAPS),
    },
    "Flax's language model example": {
        "decoder/Embed_0/embedding": ((32, 8), EMBEDDING),
        "decoder/encoderdecoderblock_0/MlpBlock_0/Dense_1/kernel": ((32, 8), MATRIX),
        "decoder/logitdense/kernel": ((8, 32), HEAD),
    },
    "T5": {
        "token_embedder/embedding": ((32, 8), EMBEDDING),
        "encoder/layers_0/attention/out/kernel": ((8, 8), MATRIX),
        "decoder/layers_0/self_attention/query/kernel": ((8, 8), MATRIX),
        "decoder/layers_0/mlp/wi_0/kernel": ((8, 16), MATRIX),
        "decoder/layers_0/mlp/wo/kernel": ((16, 8), MATRIX),
        "decoder/logits_dense/kernel": ((8, 32), HEAD),
    },
    "NNX: GPT": {
        "wte/embedding": ((32, 8), EMBEDDING),
        "blocks/0/attn/query/kernel": ((8, 2, 4), IN_COLUMNS),
        "blocks/0/attn/out/kernel": ((2, 4, 8), IN_ROWS),
        "blocks/0/mlp/fc1/kernel": ((8, 32), MATRIX),
        "blocks/0/mlp/fc2/kernel": ((32, 8), MATRIX),
        "lm_head/kernel": ((8, 32), HEAD),
    },
    "GPT-2 with tied embeddings": {
        "transformer/wte/embedding": ((32, 8), EMBEDDING),
        "transformer/h/0/attn/c_attn/kernel": ((8, 24), MATRIX),
        "transformer/h/0/attn/c_proj/kernel": ((8, 8), MATRIX),
        "transformer/h/0/mlp/c_fc/kernel": ((8, 32), MATRIX),
        "transformer/h/0/mlp/c_proj/kernel": ((32, 8), MATRIX),
        "transformer/ln_f/scale": ((8,), "fewer than two axes"),
    },
    "BERT": {
        "bert/embeddings/word_embeddings/embedding": ((32, 8), EMBEDDING),
        "bert/encoder/layer/0/attention/output/dense/kernel": ((8, 8), MATRIX),
        "bert/encoder/layer/0/intermediate/dense/kernel": ((8, 32), MATRIX),
        "bert/encoder/layer/0/output/dense/kernel": ((32, 8), MATRIX),
        "bert/pooler/dense/kernel": ((8, 8), MATRIX),
        "cls/predictions/transform/dense/kernel": ((8, 8), MATRIX),
        "cls/predictions/decoder/kernel": ((8, 32), HEAD),
    },
    "BERT for classes": {
        "bert/encoder/layer_0/output/dense/kernel": ((32, 8), MATRIX),
        "bert/pooler/dense/kernel": ((8, 8), MATRIX),
        "classifier/kernel": ((8, 3), HEAD),
    },
    "ViT": {
        "embedding/kernel": ((4, 4, 3, 8), EMBEDDING),
        "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel": ((8, 32), MATRIX),
        "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel": (
            (2, 4, 8),
            IN_ROWS,
        ),
        "Transformer/posembed_input/pos_embedding": ((1, 17, 8), EMBEDDING),
        "head/kernel": ((8, 10), HEAD),
    },
    "Llama": {
        "model/embed_tokens/embedding": ((32, 8), EMBEDDING),
        "model/layers/0/self_attn/q_proj/kernel": ((8, 8), MATRIX),
        "model/layers/0/self_attn/o_proj/kernel": ((8, 8), MATRIX),
        "model/layers/0/mlp/down_proj/kernel": ((32, 8), MATRIX),
        "model/norm/weight": ((8,), "fewer than two axes"),
        "lm_head/kernel": ((8, 32), HEAD),
    },
    "Llama with another head": {
        "model/layers/0/self_attn/o_proj/kernel": ((8, 8), MATRIX),
        "output/weight": ((32, 8), HEAD),
    },
    "ResNet of Flax": {
        "conv_init/kernel": ((3, 3, 3, 8), WINDOW),
        "ResNetBlock_0/Conv_0/kernel": ((3, 3, 8, 8), WINDOW),
        "ResNetBlock_0/conv_proj/kernel": ((1, 1, 8, 8), WINDOW),
        "Dense_0/kernel": ((8, 10), PERHAPS),
    },
    "ResNet of PyTorch": {
        "conv1/weight": ((8, 3, 3, 3), gradx.MatrixAxes((2, 3, 1), 0)),
        "layer1/0/conv1/weight": ((8, 8, 3, 3), gradx.MatrixAxes((2, 3, 1), 0)),
        "fc/weight": ((10, 8), HEAD),
    },
    "MLP of Flax": {
        "Dense_0/kernel": ((4, 8), MATRIX),
        "Dense_1/kernel": ((8, 8), MATRIX),
        "Dense_10/kernel": ((8, 3), PERHAPS),
        "Dense_2/bias": ((8,), "fewer than two axes"),
    },
    "MLP with a head": {
        "Dense_0/kernel": ((4, 8), MATRIX),
        "Dense_1/kernel": ((8, 8), MATRIX),
        "head/kernel": ((8, 3), HEAD),
    },
    "MLP of Equinox": {
        "layers/0/weight": ((8, 4), TURNED),
        "layers/0/bias": ((8,), "fewer than two axes"),
        "layers/1/weight": ((3, 8), PERHAPS_TURNED),
    },
    "MLP of PyTorch": {
        "fc1/weight": ((8, 4), TURNED),
        "fc2/weight": ((3, 8), HEAD),
    },
    "MLP of arrays": {
        "in": ((4, 8), MATRIX),
        "hidden": ((8, 8), MATRIX),
        "out": ((8, 3), HEAD),
    },
    "Haiku": {
        "transformer/embed/embeddings": ((32, 8), EMBEDDING),
        "transformer/h0_attn/query/w": ((8, 8), MATRIX),
        "transformer/h0_mlp/linear/w": ((8, 32), MATRIX),
        "transformer/h0_mlp/linear_1/w": ((32, 8), MATRIX),
        "transformer/h0_mlp/linear_1/b": ((8,), "fewer than two axes"),
        "transformer/linear/w": ((8, 8), MATRIX),
        "transformer/linear_1/w": ((8, 32), PERHAPS),
    },
    "an autoencoder": {
        "encoder/kernel": ((8, 2), MATRIX),
        "decoder/kernel": ((2, 8), HEAD),
    },
    "a head, and one more last layer": {
        "body/0/kernel": ((8, 8), MATRIX),
        "fc/kernel": ((8, 8), PERHAPS),
        "head/kernel": ((8, 3), HEAD),
    },
    "a block of GPT, alone": {
        "c_fc/kernel": ((8, 32), PERHAPS),
        "c_proj/kernel": ((32, 8), PERHAPS),
    },
    "fc and a layer that says nothing": {
        "fc/kernel": ((8, 8), PERHAPS),
        "dense/kernel": ((8, 8), PERHAPS),
    },
    "fc before an output": {
        "body/0/kernel": ((8, 8), MATRIX),
        "fc/kernel": ((8, 8), PERHAPS),
        "output/kernel": ((8, 3), HEAD),
    },
    "two outputs": {
        "body/0/kernel": ((8, 8), MATRIX),
        "policy_output/kernel": ((8, 3), HEAD),
        "value_output/kernel": ((8, 1), HEAD),
    },
    "a block's outputs": {
        "layer_0/output/dense/kernel": ((8, 8), MATRIX),
        "layer_0/output/kernel": ((8, 8), MATRIX),
        "layer_1/cls/kernel": ((8, 8), MATRIX),
        "norm/kernel": ((8, 8), SMALL),
    },
}


def tree_of(model: str) -> Any:
    """As nested dictionaries of shapes."""
    root: dict[str, Any] = {}
    for path, (shape, _) in MODELS[model].items():
        *above, last = path.split("/")
        node = root
        for name in above:
            node = node.setdefault(name, {})
        node[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return root


def seen(tree: Any) -> dict[str, Any]:
    """Path to how it is seen, or why it is no matrix."""
    named = {(MATRIX, True): PERHAPS, (TURNED, True): PERHAPS_TURNED}
    return {
        path: found.why if found.axes is None else named.get((found.axes, found.in_doubt), found[0])
        for path, found in zip(gtree.paths(tree), judged(tree), strict=True)
    }


each_model = pytest.mark.parametrize("model", MODELS)


@each_model
def test_the_leaves_of_models_are_what_they_are(model: str) -> None:
    assert seen(tree_of(model)) == {path: said for path, (_, said) in MODELS[model].items()}


@each_model
@pytest.mark.parametrize("without", [None, MaskedNode()], ids=["no gradient", "hidden"])
def test_a_leaf_is_judged_alike_whatever_others_there_are(model: str, without: Any) -> None:
    """In a step that lacks gradients, and in the group that a leaf is put into, too."""
    tree = tree_of(model)
    flat, whole = gtree.flatten(tree), seen(tree)
    for i, path in enumerate(flat.paths):
        alone = [x if j == i else without for j, x in enumerate(flat.values)]
        assert seen(flat.unflatten(alone))[path] == whole[path]


def test_describe_warns_of_what_may_be_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    mlp, language = (
        str(gradx.describe(gradx.muon(0.1), tree_of(m))) for m in ("MLP of Flax", "T5")
    )
    assert "8×3; WARNING: perhaps the head, which muon_weight_dimension_numbers=" in mlp
    assert "WARNING" not in language
    soap = str(gradx.describe(gradx.soap(0.1), tree_of("MLP of Flax")))
    assert "8×3; WARNING: perhaps the head, which axes=… can leave to the fallback" in soap
    given = gradx.soap(0.1, axes=gradx.by_path({"Dense_10|bias": None}, default=gradx.MatrixAxes()))
    assert "WARNING" not in str(gradx.describe(given, tree_of("MLP of Flax")))


@each_model
def test_init_and_update_agree(model: str) -> None:
    """Of the whole tree, and with gradients for every other leaf only."""
    tx = gradx.muon(0.1, ns_steps=1)
    params = tree_of(model)
    state = jax.eval_shape(tx.init, params)
    values, treedef = jax.tree.flatten(params)
    some = treedef.unflatten([x if i % 2 else None for i, x in enumerate(values)])
    for gradients in (params, some):
        _, new = jax.eval_shape(tx.update, gradients, state, params)
        assert jax.tree.structure(new) == jax.tree.structure(state)
