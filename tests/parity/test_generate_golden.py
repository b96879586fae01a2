"""Both phases, greedy and guided, give exactly the ids that the reference gave."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_policy import golden_policy
from PIL import Image

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.open_checkpoint import open_checkpoint
from gotr1_jax.convert.translate import translate_checkpoint
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.trainer.logprobs import conditional_hidden, unconditional_hidden


@pytest.fixture(scope="module")
def golden_model(shared: Path):
    return golden_policy(shared)


def greedy(
    policy, specials, config, prompt: list[int], max_plan_tokens: int, speculative: int = 0
) -> Rollout:
    graphdef, state = nnx.split(policy)
    settings = SamplerConfig(
        max_plan_tokens, guidance=5.0, greedy=True, image_bucket=192, speculative=speculative
    )
    sampler = Sampler(graphdef, config, specials, settings)
    # Padding behind the prompt must not matter.
    ids = jnp.asarray([prompt + [9] * (-len(prompt) % 16)], jnp.int32)
    prompts = PromptBatch(ids, jnp.asarray([len(prompt)], jnp.int32))
    return sampler(sampler.prepare(state), prompts, row_keys(0, 0, jnp.arange(1), 1), 1)


def test_short_generation_and_both_branches(golden_model, shared: Path) -> None:
    policy, specials = golden_model
    golden = np.load(shared / "goldens" / "janus_a.npz")
    text, image = golden["gen.text_ids"], golden["gen.image_ids"]
    config = replace(policy.cfg, image_size=80)  # 25 tokens: the oracle has 24
    prompt = golden["gen.prompt_ids"].tolist()
    rollout = greedy(policy, specials, config, prompt, len(text) - 1)
    rows = rollout.rows
    assert rows.plan_ids_BT[0, : int(rows.plan_len_B[0])].tolist() == text.tolist()
    # BOI did not come within 24 tokens: it was appended, and nobody chose it.
    assert rows.plan_mask_BT[0].tolist() == [True] * 24 + [False]
    assert rows.image_ids_BU[0, : len(image)].tolist() == image.tolist()
    cond = policy.image_logits(conditional_hidden(policy, rows)[1][0, 0])
    uncond = policy.image_logits(unconditional_hidden(policy, rows, specials)[0, 0])
    np.testing.assert_allclose(cond, golden["gen.first_cond_logits"], atol=2e-4, rtol=0)
    np.testing.assert_allclose(uncond, golden["gen.first_uncond_logits"], atol=2e-4, rtol=0)


def test_a_whole_caption(golden_model, shared: Path) -> None:
    policy, specials = golden_model
    golden = json.loads((shared / "goldens" / "janus_a_generate.json").read_text())
    rollout = greedy(policy, specials, policy.cfg, golden["prompt_ids"], 32)
    rows = jax.device_get(rollout.rows)
    text = rows.plan_ids_BT[0, : rows.plan_len_B[0]].tolist()
    assert text == golden["text_ids"]
    assert rows.image_ids_BU[0].tolist() == golden["image_ids"]


def convert(source: Path, target: Path, form: Literal["original", "hf"]) -> Path:
    translate_checkpoint(target, open_checkpoint(source), form, shard_size=200_000_000)
    return target


def chain(shared: Path, folder: Path) -> Iterator[Path]:
    """Pickled in two shards, then ours, the port, and ours again; each replaces the one before."""
    script = shared / "goldens" / "make_checkpoint.py"
    before = folder / "bin"
    subprocess.run([sys.executable, script, "janus_a", before, "--shards", "2"], check=True)
    yield before
    for name, form in (("ours", "original"), ("port", "hf"), ("back", "original")):
        after = convert(before, folder / name, form)
        shutil.rmtree(before)
        yield after
        before = after


def test_a_whole_caption_from_every_form(golden_model, shared: Path, tmp_path: Path) -> None:
    """The last one with several image tokens in a pass."""
    golden = json.loads((shared / "goldens" / "janus_a_generate.json").read_text())
    wanted = nnx.split(golden_model[0])[1]
    for path in chain(shared, tmp_path):
        loaded = load_checkpoint(path, parts=("policy", "vq"))
        jax.tree.map(np.testing.assert_array_equal, loaded.policy, wanted)
        if path.name != "back":
            continue  # equal arrays give equal ids
        policy, specials = loaded.policy_module(), loaded.tokenizer.specials
        prompt = loaded.tokenizer.encode_prompt(golden["caption"])
        assert prompt == golden["prompt_ids"]
        rollout = greedy(policy, specials, loaded.config, prompt, 32, speculative=24)
        rows = jax.device_get(rollout.rows)
        assert rollout.passes_B is not None and int(rollout.passes_B[0]) < 576
        assert rows.plan_ids_BT[0, : rows.plan_len_B[0]].tolist() == golden["text_ids"]
        assert rows.image_ids_BU[0].tolist() == golden["image_ids"]
        ids = jnp.asarray(golden["image_ids"], jnp.int32)[None]
        pixels = np.asarray(loaded.vq_module().decode_ids(ids, 24))[0]
        painted = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
        theirs = np.asarray(Image.open(shared / "goldens" / "janus_a_generate.png"))
        assert np.abs(painted.astype(int) - theirs).max() <= 1
