"""TokenBatch, the null context and teacher-forced log-probabilities: oracles by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from packed_rows import embed_null_rows, pack

from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.models.config import DecoderConfig, JanusConfig, VQConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.sampler.token_batch import (
    TokenBatch,
    drop_context,
    embed_rows,
    null_context,
    unconditional_prefix,
)
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.logprobs import conditional_hidden, token_logps, unconditional_hidden

BOS, PAD, BOI = 1, 2, 3
SPECIALS = SpecialIds(bos=BOS, eos=4, pad=PAD, boi=BOI, eoi=5, image=6)
CONFIG = JanusConfig(
    DecoderConfig(
        vocab_size=20, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=4,
    ),
    VQConfig(codebook_size=12, encoder_multipliers=(1, 1), decoder_multipliers=(1, 1)),
    image_size=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> TokenBatch:
    """Two rows: a full one, and one with a short prompt and an empty plan (BOI alone)."""
    return TokenBatch(
        prompt_ids_BC=jnp.array([[1, 10, 11], [1, 99, 99]]),
        prompt_len_B=jnp.array([3, 1]),
        plan_ids_BT=jnp.array([[12, 13, 3], [3, 99, 99]]),
        plan_len_B=jnp.array([3, 1]),
        plan_mask_BT=jnp.array([[True, True, False], [True, False, False]]),
        image_ids_BU=jnp.array([[5, 6, 7, 8], [9, 10, 11, 4]]),
    )


@pytest.fixture(scope="module")
def policy() -> JanusPolicy:
    return JanusPolicy(CONFIG, rngs=nnx.Rngs(0))


def real(rows: TokenBatch) -> TokenBatch:
    """The same rows with padding that is inside the vocabulary."""
    clean = jax.tree.map(lambda x: jnp.where(x == 99, 0, x) if x.dtype == jnp.int32 else x, rows)
    return clean


def test_rows_are_packed_without_gaps(rows: TokenBatch) -> None:
    packed = pack(rows)
    assert packed.ids_BS.tolist() == [
        [1, 10, 11, 12, 13, 3, 5, 6, 7],
        [1, 3, 9, 10, 11, 0, 0, 0, 0],
    ]
    image = [[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0, 0, 0, 0]]
    assert packed.is_image_BS.astype(int).tolist() == image
    assert packed.positions_1S.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8]]


def test_token_axis_is_plan_then_image(rows: TokenBatch) -> None:
    assert rows.sampled_mask_BN.astype(int).tolist() == [
        [1, 1, 0, 1, 1, 1, 1],
        [1, 0, 0, 1, 1, 1, 1],
    ]
    assert rows.is_image_BN.astype(int).tolist() == [[0, 0, 0, 1, 1, 1, 1]] * 2


def test_null_context_has_the_same_length_and_is_a_prefix_of_longer_ones() -> None:
    context = null_context(jnp.array([2, 4, 6]), 7, SPECIALS)
    assert context.tolist() == [
        [BOS, BOI, PAD, PAD, PAD, PAD, PAD],
        [BOS, PAD, PAD, BOI, PAD, PAD, PAD],
        [BOS, PAD, PAD, PAD, PAD, BOI, PAD],
    ]
    assert unconditional_prefix(5, SPECIALS).tolist() == [[BOS, PAD, PAD, PAD, PAD]]


def test_dropout_replaces_prompt_and_plan_and_leaves_no_plan_to_learn(rows: TokenBatch) -> None:
    dropped = drop_context(rows, jnp.array([True, False]), SPECIALS)
    packed = pack(dropped)
    assert packed.ids_BS[0].tolist() == [BOS, PAD, PAD, PAD, PAD, BOI, 5, 6, 7]
    assert packed.ids_BS[1].tolist() == pack(rows).ids_BS[1].tolist()
    assert dropped.plan_mask_BT.astype(int).tolist() == [[0, 0, 0], [1, 0, 0]]


def test_null_rows_use_the_one_null_context(rows: TokenBatch, policy: JanusPolicy) -> None:
    """Dropout, the naive unconditional forward and the shared prefix agree with `null_context`."""
    rows = real(rows)
    for b in range(2):
        length = int(rows.context_len_B[b])
        want = null_context(jnp.array([length]), length, SPECIALS)[0].tolist()
        dropped = pack(drop_context(rows, jnp.array([True, True]), SPECIALS))
        assert dropped.ids_BS[b, :length].tolist() == want
        assert unconditional_prefix(length - 1, SPECIALS)[0].tolist() + [BOI] == want
        x, _ = embed_null_rows(policy, rows, SPECIALS)
        np.testing.assert_array_equal(x[b, :length], policy.embed_text(jnp.array(want)))


def test_embedding_follows_pack(rows: TokenBatch, policy: JanusPolicy) -> None:
    rows = real(rows)
    x, positions = embed_rows(policy, rows)
    packed = pack(rows)
    text, image = policy.embed_text(packed.ids_BS), policy.embed_image(packed.ids_BS % 12)
    want = jnp.where(packed.is_image_BS[..., None], image, text)
    for b, length in enumerate((9, 5)):
        np.testing.assert_allclose(x[b, :length], want[b, :length], atol=1e-6)
    assert positions.tolist() == packed.positions_1S.tolist()


def test_padding_changes_nothing(rows: TokenBatch, policy: JanusPolicy) -> None:
    """A row alone, without padding, has the hidden states that it has in the batch."""
    rows = real(rows)
    alone = TokenBatch(
        jnp.array([[1]]), jnp.array([1]), jnp.array([[3]]), jnp.array([1]), jnp.array([[True]]),
        rows.image_ids_BU[1:],
    )  # fmt: skip
    hidden = jax.jit(lambda rows: conditional_hidden(policy, rows))
    (plan, image), (plan_alone, image_alone) = hidden(rows), hidden(alone)
    np.testing.assert_allclose(plan[1, :1], plan_alone[0], atol=1e-5)
    np.testing.assert_allclose(image[1], image_alone[0], atol=1e-5)
    null = jax.jit(lambda rows: unconditional_hidden(policy, rows, SPECIALS))
    np.testing.assert_allclose(null(rows)[1], null(alone)[0], atol=1e-5)


def test_shared_prefix_equals_whole_null_rows(rows: TokenBatch, policy: JanusPolicy) -> None:
    rows = real(rows)
    graphdef, state = nnx.split(policy)
    weight = jnp.cos(jnp.arange(2 * 4 * 16.0)).reshape(2, 4, 16)

    def shared(state) -> jax.Array:
        return (unconditional_hidden(nnx.merge(graphdef, state), rows, SPECIALS) * weight).sum()

    def naive(state) -> jax.Array:
        module = nnx.merge(graphdef, state)
        hidden = module.hidden(*embed_null_rows(module, rows, SPECIALS))
        at = rows.context_len_B[:, None] - 1 + jnp.arange(4)
        return (jnp.take_along_axis(hidden, at[..., None], axis=1) * weight).sum()

    one, gradient = jax.jit(jax.value_and_grad(shared))(state)
    two, expected = jax.jit(jax.value_and_grad(naive))(state)
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), gradient, expected
    )


def by_hand(policy: JanusPolicy, rows: TokenBatch, settings: LogpConfig) -> tuple[np.ndarray, ...]:
    """Log-probabilities and entropies (B, N) with all logits at once, in numpy."""

    def score(logits: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p = p / p.sum(-1, keepdims=True)
        chosen = np.take_along_axis(p, ids[..., None], -1)[..., 0]
        return np.log(chosen), -(p * np.log(p)).sum(-1)

    plan, image = conditional_hidden(policy, rows)
    text = np.asarray(policy.text_logits(plan), np.float64) / settings.text_temperature
    cond = np.asarray(policy.image_logits(image), np.float64)
    null = unconditional_hidden(policy, rows, SPECIALS)
    uncond = np.asarray(policy.image_logits(null), np.float64)
    guided = uncond + settings.guidance * (cond - uncond)
    logits = cond if settings.mode == "conditional" else guided
    logits = logits / settings.image_temperature
    plan_scores = score(text, np.asarray(rows.plan_ids_BT))
    image_scores = score(logits, np.asarray(rows.image_ids_BU))
    mask = np.asarray(rows.plan_mask_BT)
    return tuple(
        np.concatenate([of_plan * mask, of_image], axis=1)
        for of_plan, of_image in zip(plan_scores, image_scores)
    )


@pytest.mark.parametrize(
    "mode, chunk", [("guided", 3), ("guided", 64), ("guided_detach", 3), ("conditional", 64)]
)
def test_logps_of_every_mode_and_chunk(rows: TokenBatch, policy: JanusPolicy, mode, chunk) -> None:
    rows, settings = real(rows), LogpConfig(mode, 3.0, 0.7, 1.3)
    got = jax.jit(lambda: token_logps(policy, rows, SPECIALS, settings, chunk))()
    logp, entropy = by_hand(policy, rows, settings)
    np.testing.assert_allclose(got.logp_BN, logp, atol=1e-4)
    np.testing.assert_allclose(got.entropy_BN, entropy, atol=1e-4)


def test_detached_branch_has_no_gradient(rows: TokenBatch, policy: JanusPolicy) -> None:
    """guided_detach differentiates as if the unconditional logits were numbers."""
    rows = real(rows)
    graphdef, state = nnx.split(policy)
    null = policy.image_logits(unconditional_hidden(policy, rows, SPECIALS))

    def detached(state) -> jax.Array:
        module, settings = nnx.merge(graphdef, state), LogpConfig("guided_detach", 3.0)
        logps = token_logps(module, rows, SPECIALS, settings, 2)
        return jnp.where(rows.is_image_BN, logps.logp_BN, 0.0).sum()

    def expected(state) -> jax.Array:
        module = nnx.merge(graphdef, state)
        cond = module.image_logits(conditional_hidden(module, rows)[1])
        logp = jax.nn.log_softmax(null + 3.0 * (cond - null))
        return jnp.take_along_axis(logp, rows.image_ids_BU[..., None], -1).sum()

    one, two = jax.jit(jax.grad(detached))(state), jax.jit(jax.grad(expected))(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), one, two)
