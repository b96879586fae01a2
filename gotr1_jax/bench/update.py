"""Rows a second of training: forward and backward pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.bench.reference import (
    MODEL,
    SPECIALS,
    random_policy,
    random_prompts,
    transformers_janus,
)
from gotr1_jax.bench.timing import BenchResult, check_reference, compare
from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.trainer.logprobs import token_logps


def bench_update(
    against: str | None = None, *, repeats: int = 3, captions: int = 4, prompt_tokens: int = 32
) -> list[BenchResult]:
    """Rows a second of the gradient of the mean log-probability of image tokens."""
    graphdef, state = random_policy()
    ids = random_prompts(captions, prompt_tokens)
    image = np.random.default_rng(1).integers(
        0, MODEL.image_vocab, (captions, MODEL.num_image_tokens)
    )
    rows = TokenBatch(
        prompt_ids_BC=jnp.asarray(ids),
        prompt_len_B=jnp.full((captions,), prompt_tokens, jnp.int32),
        plan_ids_BT=jnp.full((captions, 1), SPECIALS.boi, jnp.int32),
        plan_len_B=jnp.ones((captions,), jnp.int32),
        plan_mask_BT=jnp.zeros((captions, 1), bool),
        image_ids_BU=jnp.asarray(image, jnp.int32),
    )

    def loss(state: nnx.State) -> jax.Array:
        policy = nnx.merge(graphdef, state)
        logps = token_logps(policy, rows, SPECIALS, LogpConfig("conditional"), chunk=96)
        return -logps.logp_BN[:, 1:].mean()  # of the image

    step = jax.jit(jax.value_and_grad(loss))
    model = transformers_janus(MODEL, {"policy": state}) if check_reference(against) else None
    losses: dict[str, float] = {}

    def ours() -> None:
        value, gradient = step(state)
        jax.block_until_ready(gradient)
        losses["ours"] = float(value)

    def theirs() -> None:
        losses["theirs"] = _their_update(model, ids, image)

    other = None if model is None else theirs
    result = compare("update", "rows/s (forward + backward)", captions, ours, other, repeats)
    if model is not None and abs(losses["ours"] - losses["theirs"]) > 1e-3:
        raise RuntimeError(f"the losses differ: {losses}")
    return [result]


def _their_update(model: Any, prompts: np.ndarray, image: np.ndarray) -> float:
    """The same loss and gradient in torch."""
    import torch

    text = np.concatenate([prompts, np.full((len(prompts), 1), SPECIALS.boi)], axis=1)
    tokens = torch.from_numpy(image.astype(np.int64))
    x = torch.cat(
        [
            model.get_input_embeddings()(torch.from_numpy(text.astype(np.int64))),
            model.prepare_embeddings_for_image_generation(tokens[:, :-1]),
        ],
        dim=1,
    )
    hidden = model.model.language_model(inputs_embeds=x, use_cache=False).last_hidden_state
    logits = model.model.generation_head(hidden[:, prompts.shape[1] :])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    model.zero_grad(set_to_none=True)
    loss.backward()
    return float(loss.detach())
