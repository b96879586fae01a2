"""Tensor names of Janus-Pro: where each parameter of the model lies in a checkpoint.

Two naming schemes are known: "original", the layout that DeepSeek released, and "hf", that of the
port in Hugging Face's `transformers`. The rules below give both, one line a kind of parameter;
`{l}` and `{x}` are explained at `rules.Rule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from gotr1_jax.convert.rules import CONV, Naming, Rule, Shape, linear, norm
from gotr1_jax.models.config import SiglipConfig

Format = Literal["original", "hf"]


class _Names:
    """Chooses between the names of both schemes; q, k and v are fused in the original only."""

    def __init__(self, form: Format) -> None:
        self.original = form == "original"

    def __call__(self, original: str, hf: str) -> str:
        return original if self.original else hf


def _decoder_rules(names: _Names) -> Iterator[Rule]:
    model = names("language_model.model.", "model.language_model.")
    yield Rule("policy.decoder.embed.table", f"{model}embed_tokens.weight")
    yield Rule("policy.decoder.norm.scale", f"{model}norm.weight")
    head = names("language_model.lm_head.", "lm_head.")
    yield from linear("policy.decoder.lm_head", head, bias=False)
    path, layer = "policy.decoder.layers.", f"{model}layers.{{l}}."
    for name in ("q", "k", "v", "o"):
        yield from linear(f"{path}{name}", f"{layer}self_attn.{name}_proj.", bias=False)
    for name in ("gate", "up", "down"):
        yield from linear(f"{path}{name}", f"{layer}mlp.{name}_proj.", bias=False)
    yield Rule(f"{path}attention_norm.scale", f"{layer}input_layernorm.weight")
    yield Rule(f"{path}mlp_norm.scale", f"{layer}post_attention_layernorm.weight")


def _image_rules(names: _Names) -> Iterator[Rule]:
    embed = names("gen_embed.weight", "model.generation_embeddings.weight")
    yield Rule("policy.gen_embed.table", embed)
    for tree, aligner in (
        ("policy.gen_aligner", "gen_aligner"),
        ("understanding.aligner", "aligner"),
    ):
        old = f"{aligner}.layers."
        new = "model.generation_aligner." if tree.startswith("policy") else "model.aligner."
        yield from linear(f"{tree}.first", names(f"{old}0.", f"{new}fc1."))
        yield from linear(f"{tree}.second", names(f"{old}2.", f"{new}hidden_layers.0."))
    head = names("gen_head.output_mlp_projector.", "model.generation_head.proj_out.")
    yield from linear("policy.gen_head.first", head)
    vision_head = names("gen_head.", "model.generation_head.") + "vision_head."
    yield from linear("policy.gen_head.second", vision_head)
    vq = names("gen_vision_model.", "model.vqmodel.")
    yield Rule("vq.quantize.embedding", f"{vq}quantize.embedding.weight")
    yield Rule("vq.{x}.kernel", f"{vq}{{x}}.weight", CONV)
    yield Rule("vq.{x}.scale", f"{vq}{{x}}.weight")
    yield Rule("vq.{x}.bias", f"{vq}{{x}}.bias")


def _understanding_rules(names: _Names) -> Iterator[Rule]:
    path, tower = "understanding.tower.", names("vision_model.vision_tower.", "model.vision_model.")
    patch = names(f"{tower}patch_embed.proj.", f"{tower}embeddings.patch_embedding.")
    yield Rule(f"{path}patch.kernel", f"{patch}weight", CONV)
    yield Rule(f"{path}patch.bias", f"{patch}bias")
    positions = names(f"{tower}pos_embed", f"{tower}embeddings.position_embedding.weight")
    yield Rule(f"{path}positions", positions, leading_one=names.original)
    yield from norm(f"{path}norm", names(f"{tower}norm", f"{tower}post_layernorm"))
    path += "blocks."
    block = tower + names("blocks.{l}.", "encoder.layers.{l}.")
    for third, name in enumerate("qkv"):
        if names.original:
            yield from linear(f"{path}{name}", f"{block}attn.qkv.", third)
        else:
            yield from linear(f"{path}{name}", f"{block}self_attn.{name}_proj.")
    out = names("attn.proj.", "self_attn.projection_layer.")
    yield from linear(f"{path}out", f"{block}{out}")
    for i in (1, 2):
        yield from norm(f"{path}norm{i}", block + names(f"norm{i}", f"layer_norm{i}"))
        yield from linear(f"{path}fc{i}", f"{block}mlp.fc{i}.")


def _rules(form: Format) -> tuple[Rule, ...]:
    names = _Names(form)
    return (*_decoder_rules(names), *_image_rules(names), *_understanding_rules(names))


# Inside the VQ model the port has other names for the same structure.
_HF_SEGMENTS: tuple[tuple[str, str], ...] = (
    (r"(vqmodel\.encoder)\.conv_blocks\.", r"\1.down."),
    (r"(vqmodel\.decoder)\.conv_blocks\.", r"\1.up."),
    (r"(vqmodel\..*)\.res\.", r"\1.block."),
    (r"(vqmodel\..*)\.mid\.0\.", r"\1.mid.block_1."),
    (r"(vqmodel\..*)\.mid\.1\.", r"\1.mid.attn_1."),
    (r"(vqmodel\..*)\.mid\.2\.", r"\1.mid.block_2."),
)

# Stored in released files, used by nothing: the pooling head of SigLIP, a usage counter of the
# codebook, rotary tables that follow from the configuration.
UNUSED = re.compile(
    r"vision_model\.vision_tower\.attn_pool\.|.*\.codebook_used$|.*rotary_emb\.inv_freq$"
)

NAMING: dict[Format, Naming] = {
    "original": Naming(_rules("original"), UNUSED),
    "hf": Naming(_rules("hf"), UNUSED, _HF_SEGMENTS),
}


def unused_tensors(siglip: SiglipConfig) -> dict[str, Shape]:
    """Names and shapes of the tensors that released files hold and nothing uses."""
    D, F, pool = siglip.width, siglip.mlp_size, "vision_model.vision_tower.attn_pool."
    sizes: dict[str, Shape] = {
        "q": (D, D), "kv": (2 * D, D), "proj": (D, D), "mlp.fc1": (F, D), "mlp.fc2": (D, F),
    }  # fmt: skip
    out: dict[str, Shape] = {f"{pool}latent": (1, 1, D)}
    for name, shape in sizes.items():
        out |= {f"{pool}{name}.weight": shape, f"{pool}{name}.bias": shape[:1]}
    out |= {f"{pool}norm.weight": (D,), f"{pool}norm.bias": (D,)}
    return out | {"gen_vision_model.quantize.codebook_used": (65536,)}


def part_of_tensor(name: str, form: Format) -> str | None:
    """The part that a stored tensor belongs to by its name alone, None if to none."""
    prefixes = _PREFIXES[form]
    return next((part for prefix, part in prefixes if name.startswith(prefix)), None)


_PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "original": (
        ("language_model.", "policy"),
        ("gen_embed.", "policy"),
        ("gen_aligner.", "policy"),
        ("gen_head.", "policy"),
        ("gen_vision_model.", "vq"),
        ("vision_model.", "understanding"),
        ("aligner.", "understanding"),
    ),
    "hf": (
        ("lm_head.", "policy"),
        ("model.language_model.", "policy"),
        ("model.generation_", "policy"),
        ("model.vqmodel.", "vq"),
        ("model.vision_model.", "understanding"),
        ("model.aligner.", "understanding"),
    ),
}
