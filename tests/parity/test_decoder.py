"""Decoder and policy against golden logits and against `transformers`, layer by layer."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_policy import golden_policy

from gotr1_jax.bench.reference import transformers_janus
from gotr1_jax.models.config import DecoderConfig, JanusConfig, VQConfig
from gotr1_jax.models.decoder import causal_attention
from gotr1_jax.models.janus import JanusPolicy

TINY = JanusConfig(
    DecoderConfig(
        vocab_size=40, hidden_size=32, mlp_size=48, num_layers=3, num_heads=4, num_kv_heads=2,
        head_dim=8, rope_theta=1e4,
    ),
    VQConfig(
        codebook_size=24, code_dim=8, base_channels=32, z_channels=32,
        encoder_multipliers=(1, 1), decoder_multipliers=(1, 1), num_res_blocks=1,
    ),
    image_size=8,
)  # fmt: skip


def test_golden_logits(shared: Path) -> None:
    golden = np.load(shared / "goldens" / "janus_a.npz")
    policy, _ = golden_policy(shared)
    text, image = jnp.asarray(golden["lm.input_ids"]), jnp.asarray(golden["lm.image_ids"])
    positions = jnp.arange(text.shape[1])[None]
    text_hidden = policy.hidden(policy.embed_text(text), positions)
    np.testing.assert_allclose(
        policy.text_logits(text_hidden), golden["lm.text_logits"], atol=2e-4, rtol=0
    )
    embedded = policy.embed_image(image)
    np.testing.assert_allclose(embedded, golden["lm.image_embeds"], atol=1e-5, rtol=0)
    row = jnp.concatenate([policy.embed_text(text), embedded], axis=1)
    hidden = policy.hidden(row, jnp.arange(row.shape[1])[None])
    first = text.shape[1] - 1
    logits = policy.image_logits(hidden[:, first : first + image.shape[1]])
    np.testing.assert_allclose(logits, golden["lm.image_logits"], atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def pair():
    """Our tiny policy (grouped heads) and `transformers`' model with the same weights."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    policy = JanusPolicy(TINY, rngs=nnx.Rngs(3))
    # Norms start at one everywhere; give them values that a mistake would show in.
    scale = policy.decoder.layers.mlp_norm.scale
    scale[...] = 1 + 0.1 * jnp.sin(jnp.arange(scale[...].size)).reshape(scale[...].shape)
    policy.decoder.norm.scale[...] = 1 + 0.1 * jnp.cos(jnp.arange(32))
    return policy, transformers_janus(TINY, {"policy": nnx.split(policy)[1]})


IDS = np.array([[0, 7, 8, 9, 30, 31, 3], [0, 39, 38, 11, 12, 13, 3]])


def test_every_layer_equals_transformers(pair) -> None:
    import torch

    policy, theirs = pair
    with torch.no_grad():
        out = theirs.model.language_model(torch.from_numpy(IDS), output_hidden_states=True)
    decoder = policy.decoder
    rope = decoder.rope(jnp.arange(IDS.shape[1])[None])
    x = policy.embed_text(jnp.asarray(IDS))
    np.testing.assert_allclose(x, out.hidden_states[0], atol=1e-6)
    graphdef, stacked = nnx.split(decoder.layers)
    for i in range(TINY.decoder.num_layers - 1):
        block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], stacked))
        x = block(x, rope, causal_attention)
        np.testing.assert_allclose(x, out.hidden_states[i + 1], atol=2e-5, err_msg=f"layer {i}")
    # transformers gives its last hidden state after the final norm
    hidden = policy.hidden(policy.embed_text(jnp.asarray(IDS)), jnp.arange(IDS.shape[1])[None])
    np.testing.assert_allclose(hidden, out.last_hidden_state, atol=5e-5)


def test_heads_and_image_embedding_equal_transformers(pair) -> None:
    import torch

    policy, theirs = pair
    image = np.arange(8).reshape(2, 4) * 3
    hidden = np.random.default_rng(0).standard_normal((2, 4, 32)).astype(np.float32)
    with torch.no_grad():
        embedded = theirs.prepare_embeddings_for_image_generation(torch.from_numpy(image))
        raw_image = theirs.model.generation_head(torch.from_numpy(hidden))
        text = theirs.lm_head(torch.from_numpy(hidden))
    np.testing.assert_allclose(policy.embed_image(jnp.asarray(image)), embedded, atol=1e-5)
    np.testing.assert_allclose(policy.image_logits(jnp.asarray(hidden)), raw_image, atol=2e-5)
    np.testing.assert_allclose(policy.text_logits(jnp.asarray(hidden)), text, atol=2e-5)
