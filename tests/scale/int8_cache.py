"""What a KV cache in int8 changes: log-probabilities, greedy tokens and bytes.

    python tests/scale/int8_cache.py [CKPT] [--rows 32] [--dtype bfloat16]

Draws a plan and an image for captions of the shapes world, at the settings that the checkpoint
says, with the cache in the dtype of the activations and in int8, in turn:

  |Δ logp|     recorded while sampling against teacher forcing of the same tokens, mean and 99th
               percentile over tokens, in nats: what `policy/logp_diff` measures
  other token  greedy tokens that int8 changes: rows that differ over the tokens up to their first
               difference, images after the same plans
  bytes        of a slot of all layers and heads
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.generation_config import read_generation_config
from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.decoding.kv_cache import empty_cache
from gotr1_jax.generate.config import BUILT_IN
from gotr1_jax.generate.load_policy import load_policy_to_sample
from gotr1_jax.generate.runner import ModelRunner
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.trainer.logprobs import token_logps


class Compared:
    """A checkpoint, and the rows to draw from it."""

    def __init__(self, name: str, rows: int, dtype: str) -> None:
        source = find_checkpoint(name, None)
        self.runner = ModelRunner(source, dtype)
        self.settings = read_generation_config(source).or_else(BUILT_IN)
        self.graphdef, self.state = load_policy_to_sample(source, dtype)
        tokenizer = self.runner.tokenizer
        template = self.settings.template or ""
        ids = [
            tokenizer.encode_prompt(text, template, 256)
            for text in shapes_captions("heldout", rows, 0)
        ]
        ids_PC, len_P = pad_rows(ids, max(map(len, ids)), tokenizer.specials.pad)
        self.prompts = PromptBatch(jnp.asarray(ids_PC), jnp.asarray(len_P))
        self.keys = row_keys(0, 0, jnp.arange(rows), 1)
        self.params: Any = None

    def draw(self, cache: Any, greedy: bool, plans: Rollout | None = None) -> Rollout:
        """Rows, or images after the plans of others."""
        config = replace(SamplerConfig.of(self.settings), cache_dtype=cache, greedy=greedy)
        specials = self.runner.tokenizer.specials
        sampler = Sampler(self.graphdef, self.runner.config, specials, config)
        if self.params is None:
            self.params = sampler.prepare(self.state)
        if plans is None:
            return jax.device_get(sampler(self.params, self.prompts, self.keys, 1))
        given = jnp.asarray(plans.rows.plan_ids_BT), jnp.asarray(plans.rows.plan_len_B)
        return jax.device_get(sampler.sample_images(self.params, self.prompts, *given, self.keys))

    def differences(self, rollout: Rollout) -> dict[str, np.ndarray]:
        """|Δ logp| of every sampled token, by modality."""
        specials = self.runner.tokenizer.specials

        @jax.jit
        def forced(state: nnx.State, rows: Any) -> jax.Array:
            policy = nnx.merge(self.graphdef, state)
            return token_logps(policy, rows, specials, rollout.settings).logp_BN

        found = np.abs(np.asarray(forced(self.state, rollout.rows)) - np.asarray(rollout.logp_BN))
        mask, is_image = np.asarray(rollout.rows.sampled_mask_BN), rollout.rows.is_image_BN
        is_image = np.broadcast_to(np.asarray(is_image), mask.shape)
        return {"text": found[mask & ~is_image], "image": found[mask & is_image]}


def changed(one_BN: np.ndarray, two_BN: np.ndarray) -> tuple[int, int]:
    """Rows that differ, and tokens up to the first difference of each."""
    differ = one_BN != two_BN
    first = np.where(differ.any(1), differ.argmax(1) + 1, differ.shape[1])
    return int(differ.any(1).sum()), int(first.sum())


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ckpt", nargs="?", default="embedded")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    compared = Compared(options.ckpt, options.rows, options.dtype)
    greedy = {}
    for cache in ("auto", "int8"):
        for kind, values in compared.differences(compared.draw(cache, False)).items():
            print(
                f"{options.dtype}, cache {cache}, {kind}: |Δ logp| mean {values.mean():.2g}, "
                f"99 % below {np.quantile(values, 0.99):.2g}, {values.size} tokens",
                flush=True,
            )
        plans = greedy.get("auto")
        greedy[cache] = compared.draw(cache, True, plans)
    rows, tokens = changed(greedy["auto"].rows.image_ids_BU, greedy["int8"].rows.image_ids_BU)
    print(f"greedy images: {rows} of {options.rows} differ; other token: {rows / tokens:.2g}")
    decoder = compared.runner.config.decoder
    sizes = []
    for dtype in (options.dtype, "int8"):
        cache = jax.eval_shape(lambda d=dtype: empty_cache(decoder, 1, 1, jnp.dtype(d)))
        sizes.append(sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)))
    print(f"bytes of a slot: {sizes[0]} and {sizes[1]}")


if __name__ == "__main__":
    main()
