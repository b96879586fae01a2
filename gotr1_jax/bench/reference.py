"""The model that is measured: ours, and `transformers`' with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from gotr1_jax.bench.timing import AGAINST
from gotr1_jax.convert.checkpoint import out_tensors
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import DecoderConfig, JanusConfig, VQConfig
from gotr1_jax.models.janus import JanusPolicy
from gotr1_jax.tokenizers.janus import SpecialIds

SPECIALS = SpecialIds(bos=0, eos=1, pad=2, boi=3, eoi=4, image=5)
GUIDANCE = 5.0
MODEL = JanusConfig(
    DecoderConfig(
        vocab_size=1024, hidden_size=512, mlp_size=1408, num_layers=8, num_heads=8,
        num_kv_heads=8, head_dim=64,
    ),
    VQConfig(),
    image_size=384,
)  # fmt: skip


def transformers_janus(config: JanusConfig, states: dict[str, nnx.State]) -> Any:
    """`transformers`' JanusForConditionalGeneration with our weights, in float32, for evaluation.

    Parts that `states` ("policy", "vq") leaves out stay random; the vision tower is a stub.
    Raises InputError when torch or transformers is missing.
    """
    try:
        import torch
        from transformers import JanusConfig as TheirConfig
        from transformers import JanusForConditionalGeneration
    except ImportError as error:
        raise InputError(
            f"the comparison needs {error.name}; install the extra: pip install gotr1_jax[convert]"
        ) from error
    d, vq = config.decoder, config.vq
    theirs = TheirConfig(
        text_config={
            "model_type": "llama", "vocab_size": d.vocab_size, "hidden_size": d.hidden_size,
            "intermediate_size": d.mlp_size, "num_hidden_layers": d.num_layers,
            "num_attention_heads": d.num_heads, "num_key_value_heads": d.num_kv_heads,
            "head_dim": d.head_dim, "rms_norm_eps": d.norm_eps, "max_position_embeddings": 16384,
            "tie_word_embeddings": False, "rope_theta": d.rope_theta,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": config.image_size, "patch_size": vq.downsampling,
            "projection_dim": d.hidden_size, "num_image_tokens": config.num_image_tokens,
        },
        vq_config={
            "embed_dim": vq.code_dim, "num_embeddings": vq.codebook_size,
            "latent_channels": vq.z_channels, "base_channels": vq.base_channels,
            "channel_multiplier": list(vq.decoder_multipliers),
            "num_res_blocks": vq.num_res_blocks, "projection_dim": d.hidden_size,
            "image_token_embed_dim": d.hidden_size,
        },
        tie_word_embeddings=False,
        image_token_id=SPECIALS.image,
    )  # fmt: skip
    model = JanusForConditionalGeneration(theirs).eval()
    ours = {t.name: torch.from_numpy(t.get().copy()) for t in out_tensors(states, "hf")}
    unknown = model.load_state_dict(ours, strict=False).unexpected_keys
    if unknown:
        raise RuntimeError(f"transformers has no tensors {unknown}")
    for name, value in (("bos", SPECIALS.bos), ("eos", SPECIALS.eos), ("pad", SPECIALS.pad)):
        setattr(model.generation_config, f"{name}_token_id", value)
    model.generation_config.generation_kwargs = {"boi_token_id": SPECIALS.boi}
    return model


def random_prompts(captions: int, length: int) -> np.ndarray:
    """Random prompts (captions, length): BOS, then words."""
    words = np.random.default_rng(0).integers(8, MODEL.decoder.vocab_size, (captions, length))
    words[:, 0] = SPECIALS.bos
    return words.astype(np.int32)


def random_policy() -> tuple[nnx.GraphDef, nnx.State]:
    """`MODEL` with seeded random weights, split."""
    return nnx.split(JanusPolicy(MODEL, rngs=nnx.Rngs(0)))


def is_wanted(against: str | None) -> bool:
    """Whether the other side is to be timed; InputError for a name that nobody knows."""
    if against not in (None, AGAINST):
        raise InputError(f"--against {against}: the only known one is {AGAINST}")
    return against is not None
