"""Processor seconds of the demo's update and log-probabilities, for several settings in turns.

    python tests/scale/update_time.py 64,1 16,4 --repeats 4

Each setting is update.micro_batch,update.length_buckets of configs/shapes_grpo.yaml. The rows are
half of a step's, drawn by the embedded checkpoint. Where other programs use the same cores,
processor time says more than wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import jax.numpy as jnp
import numpy as np

from gotr1_jax.config import load_config
from gotr1_jax.grpo import setup
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.policy import load_policy
from gotr1_jax.grpo.prompts import encode_captions
from gotr1_jax.grpo.sampled import resolve_job
from gotr1_jax.grpo.update import PolicyBatch
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.parallel.placement import put_rows
from gotr1_jax.sampler.sampler import Rollout, row_keys
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import new_state

DEMO = Path(__file__).resolve().parents[2] / "configs" / "shapes_grpo.yaml"


class Setting:
    """The learner of one pair of micro-batch and number of lengths."""

    def __init__(self, micro_batch: str, length_buckets: str) -> None:
        words = ["--update.micro_batch", micro_batch, "--update.length_buckets", length_buckets]
        self.config = resolve_job(load_config(GrpoConfig, DEMO, words))
        self.mesh = make_mesh()
        self.policy, self.checkpoint = load_policy(self.config.policy, 0, self.mesh)
        self.optimizer = make_optimizer(self.config.optimizer, 1000)
        self.learner = setup.make_learner(
            self.config, self.policy, self.checkpoint.config, self.checkpoint.tokenizer.specials,
            self.optimizer, self.policy.reference() if self.config.loss.kl != "none" else None,
        )  # fmt: skip
        params = jax.tree.map(jnp.copy, self.policy.trained)
        self.state: Any = jax.jit(new_state, static_argnums=1)(params, self.optimizer)

    def rollout(self) -> Rollout:
        config, tokenizer = self.config, self.checkpoint.tokenizer
        captions = shapes_captions("train", config.captions.count, config.seed)
        captions = captions[: config.rollout.captions_per_step // 2]
        prompts = encode_captions(
            captions, tokenizer, config.policy.prompt_template, config.policy.max_prompt_tokens
        )
        sampler = setup.make_sampler(
            config, self.policy, self.checkpoint.config, tokenizer.specials, self.mesh
        )
        G = config.rollout.samples_per_caption
        keys = row_keys(0, 1, jnp.arange(len(captions)), G)
        params = sampler.prepare(self.policy.whole(self.policy.trained))
        return sampler(params, prompts.batch(), keys, G)

    def update(self, batch: PolicyBatch) -> None:
        self.state, _ = self.learner.update(self.state, self.policy.frozen, batch)
        jax.block_until_ready(self.state)

    def logps(self, batch: PolicyBatch) -> None:
        trained, frozen = self.policy.trained, self.policy.frozen
        jax.block_until_ready(self.learner.token_logps(trained, frozen, batch.rollout.rows))


def processor_seconds(run: Callable[[PolicyBatch], None], batch: PolicyBatch) -> float:
    start = time.process_time()
    run(batch)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+")
    parser.add_argument("--repeats", type=int, default=4)
    arguments = parser.parse_args()
    settings = {words: Setting(*words.split(",")) for words in arguments.settings}
    first = next(iter(settings.values()))
    rollout = first.rollout()
    B = rollout.rows.plan_len_B.shape[0]
    advantages = np.random.default_rng(0).standard_normal(B).astype(np.float32)
    reference = rollout.logp_BN if first.learner.reference is not None else None
    batch = PolicyBatch(
        rollout, None, reference, put_rows(PerModality(advantages, advantages), first.mesh),
        put_rows(np.ones(B, bool), first.mesh),
    )  # fmt: skip
    length_B = np.asarray(rollout.rows.context_len_B)
    print(f"{B} rows, prompts and plans of {length_B.min()} to {length_B.max()} tokens")
    print(f"mean {length_B.mean():.0f}, limit {rollout.rows.context_size}")
    runs = {
        (words, name): getattr(setting, name)
        for words, setting in settings.items()
        for name in ("logps", "update")
    }
    for key, run in runs.items():
        print(*key, f"first call {processor_seconds(run, batch):.1f}", flush=True)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(arguments.repeats):
        for key, run in runs.items():
            seconds[key].append(processor_seconds(run, batch))
    for key, found in seconds.items():
        print(*key, f"median {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})")


if __name__ == "__main__":
    main()
