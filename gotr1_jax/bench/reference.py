"""The measured model, in gotr1_jax and with the same weights in `transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import nnx

from gotr1_jax.bench.timing import import_reference
from gotr1_jax.convert.names import NAMING
from gotr1_jax.convert.tree import checkpoint_tensors
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
    """`transformers`' JanusForConditionalGeneration with our weights, float32, in evaluation mode.

    Parts that are not in `states` ("policy", "vq") are random; the vision tower is a stub. Raises
    InputError if torch or transformers is missing.
    """
    torch, transformers = import_reference()
    d, vq = config.decoder, config.vq
    theirs = transformers.JanusConfig(
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
    model = transformers.JanusForConditionalGeneration(theirs).eval()
    tensors = checkpoint_tensors(states, NAMING["hf"])
    ours = {t.name: torch.from_numpy(t.get().copy()) for t in tensors}
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
