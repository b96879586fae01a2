"""True image tokens: through the tokenizer and back, and how likely the policy finds them."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.decoding.config import LogpConfig
from gotr1_jax.generate.batches import SampleBatch
from gotr1_jax.generate.load_policy import load_policy_to_sample
from gotr1_jax.models.vq import image_decoder
from gotr1_jax.parallel.startup import default_dtype
from gotr1_jax.sampler.token_batch import TokenBatch
from gotr1_jax.sft.image_encoder import ImageEncoder
from gotr1_jax.trainer.logprobs import token_logps


class ImageReconstructor:
    """The image tokenizer of a checkpoint, on one device."""

    def __init__(self, source: Path) -> None:
        """source: checkpoint directory."""
        vq = load_checkpoint(source, parts=("vq",))
        self.image_size = vq.config.image_size
        self._encode = ImageEncoder(vq.config.vq, vq.vq, jax.local_devices()[:1])
        graphdef, self._state = nnx.split(vq.vq_module())
        self._decode = image_decoder(graphdef, vq.config.grid)

    def __call__(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """uint8 images -> their tokens int32 (B, U), and the images of these tokens, uint8."""
        ids_BU = self._encode(pixels_BHWC)
        return ids_BU, np.asarray(self._decode(self._state, ids_BU))


class ImageTokenScorer:
    """A checkpoint's policy, on one device, teacher-forced: no guidance, temperature 1."""

    def __init__(self, source: Path) -> None:
        """source: checkpoint directory."""
        specials = load_checkpoint(source, parts=()).tokenizer.specials
        graphdef, self._state = load_policy_to_sample(source, default_dtype())
        settings = LogpConfig(mode="conditional", guidance=1.0)

        def score(state: nnx.State, rows: TokenBatch) -> jax.Array:
            policy = nnx.merge(graphdef, state)
            logp_BN = token_logps(policy, rows, specials, settings).logp_BN
            return -logp_BN[:, rows.plan_ids_BT.shape[1] :].mean(axis=1)

        self._score = jax.jit(score)

    def __call__(self, batch: SampleBatch, ids_BU: np.ndarray) -> np.ndarray:
        """Mean of -log p over the image tokens of each row, nats, float32 (B,).

        batch: captions with given plans; ids_BU: int32, of each row.
        """
        assert batch.plan_ids_BT is not None and batch.plan_len_B is not None
        T = batch.plan_ids_BT.shape[1]
        rows = TokenBatch(
            prompt_ids_BC=jnp.asarray(batch.prompt_ids_BC),
            prompt_len_B=jnp.asarray(batch.prompt_len_B),
            plan_ids_BT=jnp.asarray(batch.plan_ids_BT),
            plan_len_B=jnp.asarray(batch.plan_len_B),
            plan_mask_BT=jnp.asarray(np.arange(T)[None, :] < batch.plan_len_B[:, None]),
            image_ids_BU=jnp.asarray(ids_BU),
        )
        return np.asarray(self._score(self._state, rows))
