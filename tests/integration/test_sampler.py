"""The sampler against full forwards, hand-made masks, and itself in other shapes."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gotr1_jax.decoding import panels
from gotr1_jax.decoding.config import TokenSamplingConfig
from gotr1_jax.decoding.guidance import guide
from gotr1_jax.decoding.sample_token import top_k_top_p_filter
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import DecoderConfig, JanusConfig, LoraConfig, VQConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.policy_weights import policy_weights_in_panels
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.tokenizers.janus import SpecialIds
from gotr1_jax.trainer.logprobs import conditional_hidden, token_logps, unconditional_hidden

SPECIALS = SpecialIds(bos=1, eos=4, pad=2, boi=3, eoi=5, image=6)
CONFIG = JanusConfig(
    DecoderConfig(
        vocab_size=12, hidden_size=16, mlp_size=24, num_layers=2, num_heads=4, num_kv_heads=2,
        head_dim=4,
    ),
    VQConfig(codebook_size=20, encoder_multipliers=(1, 1), decoder_multipliers=(1, 1)),
    image_size=6,
)  # fmt: skip
SETTINGS = SamplerConfig(
    max_plan_tokens=7, guidance=3.0, text_temperature=0.8, image_temperature=1.2, plan_bucket=3,
    image_bucket=4,
)  # fmt: skip
LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "v", "down"))
PROMPTS = PromptBatch(
    jnp.array([[1, 7, 8, 9, 10], [1, 11, 0, 0, 0], [1, 9, 9, 0, 0], [1, 8, 7, 6, 0]]),
    jnp.array([5, 2, 3, 4]),
)
G = 2
KEYS = row_keys(0, 4, jnp.arange(4), G)


@pytest.fixture(scope="module")
def policy() -> JanusPolicy:
    """A policy whose adapters change its outputs."""
    policy = JanusPolicy(CONFIG, rngs=nnx.Rngs(0), lora=LORA)
    block = policy.decoder.layers
    for layer in (block.q, block.v, block.down):
        assert layer.lora_b is not None
        layer.lora_b[...] = 0.3 * jnp.sin(jnp.arange(layer.lora_b[...].size)).reshape(
            layer.lora_b[...].shape
        )
    return policy


SAMPLERS: dict = {}


def sampler_of(policy, settings=SETTINGS, **more) -> Sampler:
    """One sampler for each setting: it compiles once for all tests of this file."""
    key = (settings, *more.items())
    if key not in SAMPLERS:
        SAMPLERS[key] = Sampler(nnx.split(policy)[0], CONFIG, SPECIALS, settings, **more)
    return SAMPLERS[key]


def sample(
    policy, settings=SETTINGS, prompts=PROMPTS, keys=KEYS, samples=G, images=1, **more
) -> Rollout:
    sampler = sampler_of(policy, settings, **more)
    params = sampler.prepare(nnx.split(policy)[1])
    return jax.device_get(sampler(params, prompts, keys, samples, images))


def teacher_forced(policy, rollout: Rollout) -> jax.Array:
    """Teacher-forced log-probabilities (B, N) of the sampled tokens."""
    graphdef, state = nnx.split(policy)

    @jax.jit
    def logps(state, rows):
        return token_logps(nnx.merge(graphdef, state), rows, SPECIALS, rollout.settings).logp_BN

    return logps(state, rollout.rows)


@pytest.fixture(scope="module")
def rollout(policy) -> Rollout:
    return sample(policy)


def assert_same(one: Rollout, two: Rollout) -> None:
    jax.tree.map(np.testing.assert_array_equal, one.rows, two.rows)
    np.testing.assert_allclose(one.plan_logp_BT, two.plan_logp_BT, atol=1e-4)
    np.testing.assert_allclose(one.image_logp_BU, two.image_logp_BU, atol=1e-4)


def test_logps_equal_teacher_forced_ones(policy, rollout: Rollout) -> None:
    """Both phases, with guidance, temperatures and adapters; the ratio is then exactly one."""
    np.testing.assert_allclose(rollout.logp_BN, teacher_forced(policy, rollout), atol=1e-4)
    assert np.all(rollout.image_logp_BU < 0)


def test_weights_in_panels_draw_the_same(
    policy, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "_WIDTH", 4)
    monkeypatch.setattr(panels, "_SMALLEST", 1)
    monkeypatch.setattr(panels, "_processors", lambda: 1)
    sampler = Sampler(nnx.split(policy)[0], CONFIG, SPECIALS, SETTINGS)
    params = sampler.prepare(nnx.split(policy)[1])
    cut = policy_weights_in_panels(params, rows=16)
    # The jitted one may know shapes from before the patch.
    given = Mock(return_value=cut)
    programs = replace(sampler.programs, weights_in_panels=given)
    monkeypatch.setattr(sampler, "programs", programs)
    assert isinstance(cut.layers[0].qkv_KfhD, panels.Panels)
    assert isinstance(cut.image_head[2], panels.Panels)
    assert_same(sampler(params, PROMPTS, KEYS, G), rollout)
    assert given.call_count == 2  # for plans and for images


def test_plans_end_at_boi_and_the_mask_is_on_sampled_tokens(rollout: Rollout) -> None:
    rows = rollout.rows
    lengths = rows.plan_len_B.tolist()
    assert len(set(lengths)) > 2 and 8 in lengths and min(lengths) < 8, "plans of several lengths"
    for ids, length, mask, logp in zip(
        rows.plan_ids_BT.tolist(), lengths, rows.plan_mask_BT.tolist(), rollout.plan_logp_BT
    ):
        assert ids.index(SPECIALS.boi) == length - 1
        assert ids[length:] == [SPECIALS.pad] * (8 - length)
        drawn = 7 if length == 8 else length  # at full length BOI was forced
        assert mask == [True] * drawn + [False] * (8 - drawn)
        assert np.all(logp[:drawn] < 0) and np.all(logp[drawn:] == 0)


def test_forced_and_immediate_boi() -> None:
    """All text logits equal: greedy takes token 0, which is no BOI, or is BOI."""
    graphdef, state = nnx.split(JanusPolicy(CONFIG, rngs=nnx.Rngs(0)))
    head = state["decoder"]["lm_head"]["kernel"]
    head[...] = jnp.zeros_like(head[...])
    settings = replace(SETTINGS, greedy=True, plan_bucket=7, image_bucket=9)
    for specials, plan, mask in (
        (SPECIALS, [0] * 7 + [3], [True] * 7 + [False]),
        (replace(SPECIALS, boi=0), [0] + [2] * 7, [True] + [False] * 7),
    ):
        sampler = Sampler(graphdef, CONFIG, specials, settings)
        rows = sampler(sampler.prepare(state), PROMPTS, KEYS, G).rows
        assert rows.plan_ids_BT.tolist() == [plan] * 8
        assert rows.plan_mask_BT.tolist() == [mask] * 8
        assert rows.plan_len_B.tolist() == [plan.index(specials.boi) + 1] * 8


def test_bucket_sizes_change_nothing(policy, rollout: Rollout) -> None:
    assert_same(rollout, sample(policy, replace(SETTINGS, plan_bucket=7, image_bucket=9)))


def test_sharing_a_caption_changes_nothing(policy, rollout: Rollout) -> None:
    apart = PromptBatch(jnp.repeat(PROMPTS.ids_PC, G, 0), jnp.repeat(PROMPTS.len_P, G))
    assert_same(rollout, sample(policy, prompts=apart, samples=1))


def test_rows_do_not_depend_on_the_rest_of_the_batch(policy, rollout: Rollout) -> None:
    """Captions in another order: the same samples."""
    order = jnp.array([3, 1, 0, 2])
    prompts = PromptBatch(PROMPTS.ids_PC[order], PROMPTS.len_P[order])
    two = sample(policy, prompts=prompts, keys=row_keys(0, 4, order, G))
    chosen = jax.tree.map(lambda x: x[np.array([6, 7, 2, 3, 0, 1, 4, 5])], rollout)
    assert_same(chosen, two)
    other = sample(policy, prompts=prompts, keys=row_keys(0, 5, order, G))
    assert not np.array_equal(other.rows.image_ids_BU, two.rows.image_ids_BU)


def test_images_of_given_plans_are_the_same(policy, rollout: Rollout) -> None:
    sampler, rows = sampler_of(policy), rollout.rows
    images = sampler.sample_images(
        sampler.prepare(nnx.split(policy)[1]),
        PROMPTS,
        jnp.asarray(rows.plan_ids_BT),
        rows.plan_len_B,
        KEYS,
    )
    np.testing.assert_array_equal(images.rows.image_ids_BU, rows.image_ids_BU)
    np.testing.assert_allclose(images.image_logp_BU, rollout.image_logp_BU, atol=1e-4)
    assert not np.any(images.rows.plan_mask_BT) and not np.any(images.plan_logp_BT)


def test_an_empty_plan_is_allowed(policy) -> None:
    """BOI alone, in an array without a slot more: as with slots that are not filled."""
    sampler = sampler_of(policy)
    params, one = sampler.prepare(nnx.split(policy)[1]), jnp.ones(len(KEYS), jnp.int32)
    bare, padded = (
        sampler.sample_images(
            params, PROMPTS, jnp.full((len(KEYS), T), SPECIALS.boi, jnp.int32), one, KEYS
        )
        for T in (1, 4)
    )
    np.testing.assert_array_equal(bare.rows.image_ids_BU, padded.rows.image_ids_BU)
    np.testing.assert_allclose(bare.image_logp_BU, padded.image_logp_BU, atol=1e-4)


def test_greedy_is_the_argmax_of_the_full_forward(policy) -> None:
    """Cached decoding = full forward; top-k 1 and a tiny top-p are greedy too."""
    settings = replace(SETTINGS, plan_bucket=7, image_bucket=9)
    greedy = sample(policy, replace(settings, greedy=True))
    assert_same(greedy, sample(policy, replace(settings, top_k=1)))
    assert_same(greedy, sample(policy, replace(settings, top_p=1e-6)))
    rows = greedy.rows
    plan, image = jax.jit(lambda: conditional_hidden(policy, rows))()
    null = jax.jit(lambda: unconditional_hidden(policy, rows, SPECIALS))()
    text = jnp.argmax(policy.text_logits(plan), -1)
    np.testing.assert_array_equal(text[rows.plan_mask_BT], rows.plan_ids_BT[rows.plan_mask_BT])
    logits = guide(policy.image_logits(image), policy.image_logits(null), 3.0)
    np.testing.assert_array_equal(jnp.argmax(logits, -1), rows.image_ids_BU)


def test_without_guidance_there_is_one_branch(policy) -> None:
    settings = replace(SETTINGS, guidance=1.0, plan_bucket=7, image_bucket=9)
    assert sampler_of(policy, settings).config.branches == 1
    rollout = sample(policy, settings)
    np.testing.assert_allclose(rollout.logp_BN, teacher_forced(policy, rollout), atol=1e-4)


def test_conditional_logps_are_recorded_beside_the_guided_ones(policy, rollout: Rollout) -> None:
    """The same tokens, sampled with guidance; each modality against teacher forcing."""
    settings = replace(SETTINGS, plan_bucket=7, image_bucket=9, logp_mode="conditional")
    both = sample(policy, settings)
    assert_same(rollout, both)
    np.testing.assert_allclose(both.logp_BN, teacher_forced(policy, both), atol=1e-5)
    assert np.abs(both.image_cond_logp_BU - both.image_logp_BU).max() > 0.1
    assert rollout.image_cond_logp_BU is None
    alone = sample(policy, replace(settings, guidance=1.0))
    assert alone.image_cond_logp_BU is None  # it would be the same
    np.testing.assert_allclose(alone.logp_BN, teacher_forced(policy, alone), atol=1e-5)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_devices_sample_the_same(policy, rollout: Rollout, shape) -> None:
    """8 rows on 8 devices (captions do not divide: every device reads all), and 4 x 2 heads."""
    mesh = make_mesh(*shape)
    settings = replace(SETTINGS, plan_bucket=7, image_bucket=9)
    assert_same(rollout, sample(policy, settings, mesh=mesh))


def test_rows_that_do_not_divide_are_refused(policy) -> None:
    prompts = PromptBatch(PROMPTS.ids_PC[:3], PROMPTS.len_P[:3])
    with pytest.raises(InputError, match="multiple of 8"):
        sample(policy, prompts=prompts, keys=KEYS[:6], mesh=make_mesh(8))


def test_bfloat16_stays_close(policy) -> None:
    low = sample(policy, replace(SETTINGS, plan_bucket=7, image_bucket=9), dtype=jnp.bfloat16)
    difference = np.abs(low.logp_BN - teacher_forced(policy, low))
    assert difference[low.rows.is_image_BN].max() < 0.3


@pytest.mark.parametrize(
    "change", [{"text_temperature": 0.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_plan_tokens": 0}]
)
def test_impossible_settings_are_refused(change) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        replace(SETTINGS, **change)


def test_top_k_and_top_p_by_hand() -> None:
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3]]))
    kept = {
        TokenSamplingConfig(top_k=2): [False, True, False, True],
        TokenSamplingConfig(top_p=0.69): [False, True, False, True],
        TokenSamplingConfig(top_p=0.71): [False, True, True, True],
        TokenSamplingConfig(top_p=0.05): [False, True, False, False],
        TokenSamplingConfig(top_k=3, top_p=0.75): [False, True, False, True],
        TokenSamplingConfig(): [True] * 4,
    }
    for choice, want in kept.items():
        assert jnp.isfinite(top_k_top_p_filter(logits, choice))[0].tolist() == want, choice


def test_keys_come_from_seed_step_caption_and_sample() -> None:
    keys = jax.random.key_data(row_keys(0, 1, jnp.array([5, 9]), 3))
    assert len({tuple(k) for k in keys.tolist()}) == 6
    np.testing.assert_array_equal(keys[3:], jax.random.key_data(row_keys(0, 1, jnp.array([9]), 3)))
    for other in (row_keys(1, 1, jnp.array([5, 9]), 3), row_keys(0, 2, jnp.array([5, 9]), 3)):
        assert not np.any(np.all(jax.random.key_data(other) == keys, axis=1))
