"""|Δ log-probability| between sampler and trainer at real width, by modality, as adapters grow.

    python tests/scale/logp_drift.py 1b                           # bfloat16, about 10 GB
    python tests/scale/logp_drift.py 1b --activations float32 --updates 0,30
    python tests/scale/logp_drift.py 7b --image_tokens 576 --plan_tokens 200    # for a GPU

Weights are random; the two heads are scaled so that the entropies are those of a trained model.
The adapters' updates are those of Adam under a constant gradient: each moves every element of B by
the learning rate, in the direction of one real policy gradient. Prints a Markdown table, one row
for each number of updates; every figure is a median over tokens, in nats:

  sampler - trainer    what `policy/logp_diff` measures: recorded while sampling against teacher
                       forcing of the same tokens, both with adapters beside the weights
  trainer - float32    noise of the activations' dtype: the same weights with float32 activations
  updates              what the updates changed, in float32
  merged               the share of that change that is left when base and adapters are added and
                       rounded to the weights' dtype (float32 activations)
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.bench.reference import SPECIALS
from gotr1_jax.models.config import JANUS_PRO_1B, JANUS_PRO_7B, JanusConfig, LoraConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.models.lora import merge_lora
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.sampler import Rollout, Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch, TokenBatch
from gotr1_jax.trainer.logprobs import (
    conditional_hidden,
    guided_image_logits,
    token_logps,
    unconditional_hidden,
)

SMALL = replace(
    JANUS_PRO_1B,
    decoder=replace(
        JANUS_PRO_1B.decoder, hidden_size=256, mlp_size=704, num_layers=4, num_heads=4,
        num_kv_heads=4, head_dim=64,
    ),
)  # fmt: skip
SIZES = {"small": SMALL, "1b": JANUS_PRO_1B, "7b": JANUS_PRO_7B}
ENTROPIES = {"text": 1.0, "image": 6.0}
"""Nats: about those of plans and of guided image tokens of a trained model."""
LEARNING_RATE = 1e-5
PROMPT_TOKENS = 16
GUIDANCE = 5.0


class Policies:
    """One policy's weights, with several dtypes of activations and with any adapters."""

    def __init__(self, config: JanusConfig, activations: str) -> None:
        self.config = config
        lora = LoraConfig(rank=32, alpha=64)

        def make(dtype: jnp.dtype) -> JanusPolicy:
            return JanusPolicy(
                config, rngs=nnx.Rngs(0), lora=lora, dtype=dtype, param_dtype=jnp.bfloat16,
                remat="full",
            )  # fmt: skip

        parts = (nnx.LoRAParam, nnx.Param)
        init = jax.jit(lambda: nnx.split(make(jnp.bfloat16), *parts)[1:])
        self.adapters, self.base = init()
        self.graphdefs = {
            name: nnx.split(nnx.eval_shape(lambda n=name: make(jnp.dtype(n))), *parts)[0]
            for name in {activations, "float32"}
        }
        self.activations = activations

    def merge(self, adapters: Any, base: Any, activations: str) -> JanusPolicy:
        """The module; for use inside a jit."""
        return nnx.merge(self.graphdefs[activations], adapters, base)


def scale_heads(policies: Policies, rows: TokenBatch) -> None:
    """Multiply both heads so that the mean entropies on `rows` are ENTROPIES."""

    @jax.jit
    def logits(adapters: Any, base: Any) -> tuple[jax.Array, jax.Array]:
        policy = policies.merge(adapters, base, "float32")
        plan, image = conditional_hidden(policy, rows)
        null = unconditional_hidden(policy, rows, SPECIALS)
        return policy.text_logits(plan), guided_image_logits(policy, image, null, GUIDANCE)

    @jax.jit
    def entropy(x: jax.Array) -> jax.Array:
        logp = jax.nn.log_softmax(x)
        return -(jnp.exp(logp) * logp).sum(-1).mean()

    def factor(x: jax.Array, target: float) -> float:
        low, high = 1e-3, 1e3
        for _ in range(30):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if entropy(x * middle) > target else (low, middle)
        return low

    text, image = logits(policies.adapters, policies.base)
    base = policies.base
    assert policies.config.decoder.tie_embeddings is False
    heads = [base["decoder"]["lm_head"], base["gen_head"]["second"]]
    for head, x, target in zip(heads, (text, image), ENTROPIES.values()):
        kernel, by = head["kernel"], factor(x, target)
        kernel.set_value((kernel.get_value().astype(jnp.float32) * by).astype(jnp.bfloat16))


def random_rows(config: JanusConfig, count: int, plan_tokens: int) -> TokenBatch:
    """Rows of random tokens."""
    draw = np.random.default_rng(0).integers
    vocab, U = config.decoder.vocab_size // 2, config.num_image_tokens

    def ids(high: int, width: int) -> jax.Array:
        return jnp.asarray(draw(0, high, (count, width)), jnp.int32)

    full = jnp.full((count,), plan_tokens + 1, jnp.int32)
    mask = jnp.ones((count, plan_tokens + 1), bool).at[:, -1].set(False)
    return TokenBatch(
        prompt_ids_BC=ids(vocab, PROMPT_TOKENS), prompt_len_B=jnp.full((count,), PROMPT_TOKENS),
        plan_ids_BT=ids(vocab, plan_tokens + 1).at[:, -1].set(SPECIALS.boi), plan_len_B=full,
        plan_mask_BT=mask, image_ids_BU=ids(config.image_vocab, U),
    )  # fmt: skip


class Measurement:
    """The programs, compiled once."""

    def __init__(self, policies: Policies, sampling: SamplerConfig, rows: TokenBatch) -> None:
        self.policies, self.rows = policies, rows
        settings = sampling.logp_settings

        def logps(policy: JanusPolicy, rows: TokenBatch) -> Any:
            return token_logps(policy, rows, SPECIALS, settings)

        def scores(activations: str, merged: bool = False) -> Any:
            def run(adapters: Any, base: Any, rows: TokenBatch) -> Any:
                policy = policies.merge(adapters, base, activations)
                return logps(merge_lora(policy) if merged else policy, rows)

            return jax.jit(run)

        def loss(adapters: Any, base: Any, rows: TokenBatch, advantages_B: jax.Array) -> jax.Array:
            policy = policies.merge(adapters, base, policies.activations)
            per_row = jnp.where(rows.sampled_mask_BN, logps(policy, rows).logp_BN, 0.0).sum(-1)
            return -(advantages_B * per_row).mean()

        self.trainer = scores(policies.activations)
        self.exact = scores("float32")
        self.merged = scores("float32", merged=True)
        self.gradient = jax.jit(jax.grad(loss))
        self.graphdef = nnx.split(
            nnx.eval_shape(
                lambda: policies.merge(policies.adapters, policies.base, policies.activations)
            )
        )[0]
        self.sampler = Sampler(self.graphdef, policies.config, SPECIALS, sampling)

    def sample(self, adapters: Any) -> Rollout:
        """One rollout with the adapters beside the weights."""
        state = nnx.merge_state(adapters, self.policies.base)
        params = self.sampler.prepare(state)
        B = self.rows.prompt_ids_BC.shape[0]
        prompts = PromptBatch(self.rows.prompt_ids_BC[::2], self.rows.prompt_len_B[::2])
        keys = row_keys(0, 0, jnp.arange(B // 2), 2)
        return jax.block_until_ready(self.sampler(params, prompts, keys, 2))

    def row(self, adapters: Any) -> dict[str, float]:
        """Figures of one set of adapters, by `NAME/MODALITY`."""
        base, zero = self.policies.base, jax.tree.map(jnp.zeros_like, adapters)
        rollout = self.sample(adapters)
        rows = rollout.rows
        trainer, exact = self.trainer(adapters, base, rows), self.exact(adapters, base, rows)
        before, merged = self.exact(zero, base, rows), self.merged(adapters, base, rows)
        values: dict[str, float] = {}
        is_image, sampled = np.asarray(rows.is_image_BN), np.asarray(rows.sampled_mask_BN)
        for name, of in (("text", ~is_image & sampled), ("image", is_image & sampled)):

            def median(x: jax.Array, of: np.ndarray = of) -> float:
                return float(np.median(np.abs(np.asarray(x)[of])))

            change = np.asarray(exact.logp_BN - before.logp_BN)[of]
            left = np.asarray(merged.logp_BN - before.logp_BN)[of]
            values |= {
                f"entropy/{name}": float(np.asarray(exact.entropy_BN)[of].mean()),
                f"sampler - trainer/{name}": median(rollout.logp_BN - trainer.logp_BN),
                f"trainer - float32/{name}": median(trainer.logp_BN - exact.logp_BN),
                f"updates/{name}": float(np.median(np.abs(change))),
                f"merged/{name}": float((left @ change) / max(change @ change, 1e-30)),
            }
        return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--activations", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--updates", default="0,1,10,30,100", help="numbers of updates")
    parser.add_argument("--rows", type=int, default=4, help="an even number")
    parser.add_argument("--plan_tokens", type=int, default=24)
    parser.add_argument("--image_tokens", type=int, default=36, help="a square number")
    args = parser.parse_args()
    config: JanusConfig = SIZES[args.size]
    side = round(args.image_tokens**0.5)
    config = replace(config, image_size=side * config.vq.downsampling)
    policies = Policies(config, args.activations)
    rows = random_rows(config, args.rows, args.plan_tokens)
    scale_heads(policies, rows)
    sampling = SamplerConfig(max_plan_tokens=args.plan_tokens, guidance=GUIDANCE)
    measurement = Measurement(policies, sampling, rows)
    # B = 0: no adapters yet. The gradient of A is zero then.
    advantages = jnp.asarray(np.resize([1.0, -1.0], args.rows))
    sampled = measurement.sample(policies.adapters).rows
    gradient = measurement.gradient(policies.adapters, policies.base, sampled, advantages)
    device = jax.devices()[0]
    kind = f"{args.size}, {args.activations} activations, bfloat16 weights"
    print(
        f"{kind}, {args.rows} rows of {args.plan_tokens} + {side**2} tokens; {device.device_kind}"
    )
    for index, updates in enumerate(map(int, args.updates.split(","))):
        moved = jax.tree.map(
            lambda x, g, n=updates: x - n * LEARNING_RATE * jnp.sign(g), policies.adapters, gradient
        )
        values = measurement.row(moved)
        if index == 0:
            print("| updates | " + " | ".join(values) + " |")
            print("|-" * (len(values) + 1) + "|")
        print(f"| {updates} | " + " | ".join(f"{v:.2g}" for v in values.values()) + " |")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
