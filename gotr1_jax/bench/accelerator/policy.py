"""The policy's sections: loops, teacher-forced log-probs, update, sampler against trainer.

All of it is the code of `gotr1 train grpo`; only the weights are random, made on the device.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.aot.chips import Chip
from gotr1_jax.aot.flops import count_flops
from gotr1_jax.bench.accelerator.clocks import CompileClock, PhaseClock, Timing, measure
from gotr1_jax.bench.accelerator.costs import (
    LoopCost,
    image_cost,
    plan_cost,
    slot_bytes,
    tree_bytes,
)
from gotr1_jax.bench.accelerator.sizes import PolicyToMeasure
from gotr1_jax.bench.accelerator.weights import random_weights
from gotr1_jax.bench.reference import SPECIALS
from gotr1_jax.grpo.per_modality import PerModality
from gotr1_jax.grpo.policy import SplitPolicy, policy_shapes
from gotr1_jax.grpo.setup import make_learner, make_sampler, state_shapes
from gotr1_jax.grpo.update import Learner, PolicyBatch
from gotr1_jax.parallel.placement import put_rows
from gotr1_jax.parallel.sharding import shardings_of
from gotr1_jax.sampler.policy_weights import PolicyWeights
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch, TokenBatch
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.trainer.state import TrainState, new_state

# About what B of an adapter is after thirty steps of Adam at 1e-5.
_ADAPTER_SIZE = 3e-4
# Of the text head, so that a plan's distribution is about as sharp as a trained model's.
_TEXT_HEAD_SCALE = 4.0


def random_policy(measured: PolicyToMeasure, mesh: Mesh) -> SplitPolicy:
    """A policy of random weights, made on the devices of the mesh; its adapters are not zero."""
    shapes = policy_shapes(measured.config.policy, measured.sizes, mesh)
    head = _TEXT_HEAD_SCALE * measured.sizes.decoder.hidden_size**-0.5
    deviations = {"lora_b": _ADAPTER_SIZE, "lm_head": head}
    trained, frozen = random_weights((shapes.trained, shapes.frozen), deviations)
    return replace(shapes, trained=trained, frozen=frozen)


class PolicyRun:
    """One policy's sections. What several of them use is made once, when it is first needed."""

    def __init__(
        self, measured: PolicyToMeasure, mesh: Mesh, chip: Chip, clock: CompileClock
    ) -> None:
        self.measured, self.mesh, self.chip, self.clock = measured, mesh, chip, clock
        self.policy = random_policy(measured, mesh)

    @cached_property
    def sampler(self) -> Sampler:
        """Of the job."""
        measured = self.measured
        return make_sampler(measured.config, self.policy, measured.sizes, SPECIALS, self.mesh)

    @cached_property
    def _phases(self) -> PhaseClock:
        return PhaseClock(self.sampler)

    @cached_property
    def _params(self) -> PolicyWeights:
        whole = self.policy.whole(self.policy.trained)
        return jax.block_until_ready(self.sampler.prepare(whole))

    @cached_property
    def _optimizer(self) -> Any:
        return make_optimizer(self.measured.config.optimizer, self.measured.config.steps)

    @cached_property
    def learner(self) -> Learner:
        """Of the job, with its reference policy where the loss has a KL."""
        measured = self.measured
        reference = self.policy.reference() if measured.config.loss.kl != "none" else None
        return make_learner(
            measured.config, self.policy, measured.sizes, SPECIALS, self._optimizer, reference
        )

    def _release_params(self) -> None:
        """Drop the weights for decoding, as a job does before its update."""
        self.__dict__.pop("_params", None)

    @property
    def policy_bytes(self) -> int:
        """Bytes of the policy's own arrays."""
        return tree_bytes((self.policy.trained, self.policy.frozen))

    def rollout(self, rows: int, repeats: int) -> dict[str, Any]:
        """Plan loop and image loop of `rows` rows, in one call of the sampler."""
        sampler, phases, params = self.sampler, self._phases, self._params
        found: list[tuple[float, float, Rollout]] = []
        captions, samples = _groups(rows)
        prompts, keys = self._prompts(captions), row_keys(0, 0, jnp.arange(captions), samples)

        def once() -> Rollout:
            start = time.perf_counter()
            result = jax.block_until_ready(sampler(params, prompts, keys, samples))
            planned = phases.end_of("finish_plans")
            found.append((planned - start, time.perf_counter() - planned, result))
            return result

        timing = measure(once, self.clock, repeats)
        plan, image, result = min(found[1:], key=lambda times: times[0] + times[1])
        lengths, tokens = (
            np.asarray(result.rows.plan_len_B), result.rows.image_ids_BU.shape[1]
        )  # fmt: skip
        steps = min(int(lengths.max()), self.measured.plan_tokens)
        slot = slot_bytes(self.measured.sizes.decoder, params.norm_D.dtype.itemsize)
        layers = tree_bytes(params.layers)
        prompt = self.measured.prompt_tokens
        of_plan = plan_cost(
            layers + tree_bytes(params.text_head_VD), slot, captions, rows, prompt, steps
        )
        of_image = image_cost(
            layers + tree_bytes(params.image_head), slot, captions, rows, prompt, lengths - 1,
            tokens, sampler.config.branches == 2,
        )  # fmt: skip
        return timing.values() | {
            "rows": rows,
            "samples_per_second": rows / (plan + image),
            "plan": self._loop(of_plan, plan, rows * steps),
            "image": self._loop(of_image, image, rows * tokens)
            | {"images_per_second": rows / image},
            "not_arguments_bytes": self.policy_bytes,
        }

    def _loop(self, cost: LoopCost, seconds: float, tokens: int) -> dict[str, Any]:
        bandwidth = self.chip.bandwidth
        return {
            "seconds": seconds,
            "steps": cost.steps,
            "tokens_per_second": tokens / seconds,
            "least_bytes": cost.bytes,
            "bandwidth_share": None if bandwidth is None else cost.bytes / seconds / bandwidth,
        }

    def _prompts(self, captions: int) -> PromptBatch:
        ids = np.random.default_rng(0).integers(8, 200, (captions, self.measured.prompt_tokens))
        ids[:, 0] = SPECIALS.bos
        lengths = jnp.full((captions,), ids.shape[1], jnp.int32)
        return PromptBatch(jnp.asarray(ids, jnp.int32), lengths)

    def log_probs(self, repeats: int) -> dict[str, Any]:
        """Teacher-forced log-probabilities of an update's rows."""
        self._release_params()
        batch, policy = self._batch(), self.policy
        args = policy.trained, policy.frozen, batch.rollout.rows
        timing = measure(lambda: self.learner.token_logps(*args), self.clock, repeats)
        flops = self._forward_flops(batch)
        return self._work(timing, flops, flops)

    def update(self, repeats: int) -> dict[str, Any]:
        """Optimizer steps of the shipped loss."""
        self._release_params()
        batch, policy = self._batch(), self.policy
        states = [self.first_state()]
        traced = self.learner.update.trace(states[0], policy.frozen, batch)
        executed = count_flops(traced.jaxpr)

        def once() -> Any:
            state, metrics = self.learner.update(states.pop(), policy.frozen, batch)
            states.append(state)
            return state, metrics

        timing = measure(once, self.clock, repeats)
        # Frozen weights need no gradient of their own.
        passes = 2 if policy.has_adapters else 3
        return self._work(timing, passes * self._forward_flops(batch), executed) | {
            # The state holds a copy of them; of the reference only log-probabilities are needed.
            "not_arguments_bytes": tree_bytes((policy.trained, self.learner.reference)),
            "rows_at_once": self.measured.step_rows,
            "step_rows": self.measured.config.rollout.rows,
        }

    def _work(self, timing: Timing, model_flops: float, executed: float) -> dict[str, Any]:
        """Rates of a program over the update's rows; FLOPs are of products and convolutions."""
        rows, peak, seconds = self.measured.update_rows, self.chip.flops, timing.seconds
        config = self.measured.config
        return timing.values() | {
            "rows": rows,
            "micro_batch": config.update.micro_batch,
            "remat": config.policy.remat,
            "rows_per_second": rows / seconds,
            "model_flops": model_flops,
            "executed_flops": executed,
            "mfu": None if peak is None else model_flops / seconds / peak,
            "executed_share": None if peak is None else executed / seconds / peak,
        }

    def _forward_flops(self, batch: PolicyBatch) -> float:
        policy = self.policy
        args = policy.trained, policy.frozen, batch.rollout.rows
        return count_flops(self.learner.token_logps.trace(*args).jaxpr)

    def first_state(self) -> TrainState:
        """The state before the first update, with a copy of the trained arrays."""
        config, policy, optimizer = self.measured.config, self.policy, self._optimizer
        places = shardings_of(state_shapes(config, policy, optimizer, self.mesh))

        def make(params: Any) -> TrainState:
            return new_state(jax.tree.map(jnp.copy, params), optimizer)

        return jax.jit(make, out_shardings=places)(policy.trained)

    def _batch(self) -> PolicyBatch:
        """Random rows without padding; log-probabilities of sampler and reference are made up."""
        measured = self.measured
        rng: Any = np.random.default_rng(1)
        B, U = measured.update_rows, measured.sizes.num_image_tokens
        C, T = measured.prompt_tokens, measured.plan_tokens + 1

        def ids(width: int, limit: int) -> Any:
            return rng.integers(8, limit, (B, width)).astype(np.int32)

        # Host arrays until they are put on the mesh.
        plan_ids = ids(T, 200)
        sampled: Any = np.ones((B, T), bool)
        every: Any = np.ones(B, bool)
        plan_ids[:, -1], sampled[:, -1] = SPECIALS.boi, False
        rows = TokenBatch(
            prompt_ids_BC=ids(C, 200),
            prompt_len_B=C * every.astype(np.int32),
            plan_ids_BT=plan_ids,
            plan_len_B=T * every.astype(np.int32),
            plan_mask_BT=sampled,
            image_ids_BU=ids(U, measured.sizes.image_vocab),
        )
        sampling = measured.config.sampling
        image_logp: Any = np.full((B, U), -6.0, np.float32)
        plan_logp: Any = np.where(sampled, -1.0, 0.0).astype(np.float32)
        cond_logp = image_logp if sampling.records_conditional else None
        rollout = Rollout(rows, plan_logp, image_logp, sampling.logp_settings, cond_logp)
        advantages = PerModality(*(rng.standard_normal(B).astype(np.float32) for _ in range(2)))
        reference = rollout.logp_BN if self.learner.reference is not None else None
        batch = PolicyBatch(rollout, None, reference, advantages, every)
        return put_rows(batch, self.mesh)

    def difference(self) -> dict[str, Any]:
        """|Δ log-probability| of sampler and trainer on rows that were sampled with adapters."""
        sampler, params = self.sampler, self._params
        captions, samples = _groups(self.measured.step_rows)
        keys = row_keys(1, 0, jnp.arange(captions), samples)
        rollout = sampler(params, self._prompts(captions), keys, samples)
        rows = rollout.rows
        trained, frozen = self.policy.trained, self.policy.frozen
        found = self.learner.token_logps(trained, frozen, rows)
        difference = np.abs(np.asarray(found.logp_BN) - np.asarray(rollout.logp_BN))
        mask, entropy = np.asarray(rows.sampled_mask_BN), np.asarray(found.entropy_BN)
        is_image = np.broadcast_to(np.asarray(rows.is_image_BN), mask.shape)
        values: dict[str, Any] = {"rows": len(mask)}
        for name, here in (("text", mask & ~is_image), ("image", mask & is_image)):
            if here.any():
                values[name] = {
                    "mean": float(difference[here].mean()),
                    "median": float(np.median(difference[here])),
                    "largest": float(difference[here].max()),
                    "entropy": float(entropy[here].mean()),
                }
        return values


def _groups(rows: int) -> tuple[int, int]:
    """Captions and samples of each: groups of 16 as in the recipes, where there are so many."""
    samples = 16 if rows % 16 == 0 else rows
    return rows // samples, samples
