"""Foreign tensor names of Janus-Pro: where each of our arrays lies in a released checkpoint.

`_PAIRS` is the whole mapping, one line a kind of array, for the released format ("original") and
the Hugging Face port ("hf"). `{l}` counts the layers that we stack along a leading axis; `{x}`
stands for the same dotted words on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gotr1_jax.convert.rules import CONV, LINEAR, SAME, Naming, Rule, Shape
from gotr1_jax.models.config import SiglipConfig

Format = Literal["original", "hf"]


@dataclass(frozen=True)
class _Pair:
    """A rule of both formats; q, k, v are fused and `leading_one` holds in the original only."""

    ours: str
    original: str
    hf: str
    axes: Shape | None = SAME
    third: int | None = None
    leading_one: bool = False

    def rule(self, form: Format) -> Rule:
        if form == "hf":
            return Rule(self.ours, self.hf, self.axes)
        return Rule(self.ours, self.original, self.axes, self.third, self.leading_one)


_LLM = ("language_model.model.layers.{l}.", "model.language_model.layers.{l}.")
_SIG = ("vision_model.vision_tower.blocks.{l}.", "model.vision_model.encoder.layers.{l}.")


def _linear(ours: str, original: str, hf: str) -> tuple[_Pair, _Pair]:
    """A linear layer with bias."""
    return (
        _Pair(f"{ours}.kernel", f"{original}.weight", f"{hf}.weight", LINEAR),
        _Pair(f"{ours}.bias", f"{original}.bias", f"{hf}.bias"),
    )


def _norm(ours: str, original: str, hf: str) -> tuple[_Pair, _Pair]:
    """A layer norm."""
    return (
        _Pair(f"{ours}.scale", f"{original}.weight", f"{hf}.weight"),
        _Pair(f"{ours}.bias", f"{original}.bias", f"{hf}.bias"),
    )


def _decoder_rules() -> Iterator[_Pair]:
    llm, llm_hf = "language_model.model.", "model.language_model."
    yield _Pair("policy.decoder.embed.table", f"{llm}embed_tokens.weight", f"{llm_hf}embed_tokens.weight")  # fmt: skip  # noqa: E501
    yield _Pair("policy.decoder.norm.scale", f"{llm}norm.weight", f"{llm_hf}norm.weight")
    yield _Pair("policy.decoder.lm_head.kernel", "language_model.lm_head.weight", "lm_head.weight", LINEAR)  # fmt: skip  # noqa: E501
    layers, (old, new) = "policy.decoder.layers.", _LLM
    for ours, theirs in (
        *((n, f"self_attn.{n}_proj") for n in ("q", "k", "v", "o")),
        *((n, f"mlp.{n}_proj") for n in ("gate", "up", "down")),
    ):
        yield _Pair(
            f"{layers}{ours}.kernel", f"{old}{theirs}.weight", f"{new}{theirs}.weight", LINEAR
        )
    for ours, theirs in (
        ("attention_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
    ):
        yield _Pair(f"{layers}{ours}.scale", f"{old}{theirs}.weight", f"{new}{theirs}.weight")


def _image_rules() -> Iterator[_Pair]:
    yield _Pair("policy.gen_embed.table", "gen_embed.weight", "model.generation_embeddings.weight")
    aligner, aligner_hf = "gen_aligner.layers.", "model.generation_aligner."
    yield from _linear("policy.gen_aligner.first", f"{aligner}0", f"{aligner_hf}fc1")
    yield from _linear("policy.gen_aligner.second", f"{aligner}2", f"{aligner_hf}hidden_layers.0")
    head, head_hf = "gen_head.", "model.generation_head."
    yield from _linear("policy.gen_head.first", f"{head}output_mlp_projector", f"{head_hf}proj_out")
    yield from _linear("policy.gen_head.second", f"{head}vision_head", f"{head_hf}vision_head")
    vq, vq_hf = "gen_vision_model.", "model.vqmodel."
    table = "quantize.embedding"
    yield _Pair(f"vq.{table}", f"{vq}{table}.weight", f"{vq_hf}{table}.weight")
    yield _Pair("vq.{x}.kernel", f"{vq}{{x}}.weight", f"{vq_hf}{{x}}.weight", CONV)
    yield _Pair("vq.{x}.scale", f"{vq}{{x}}.weight", f"{vq_hf}{{x}}.weight")
    yield _Pair("vq.{x}.bias", f"{vq}{{x}}.bias", f"{vq_hf}{{x}}.bias")


def _understanding_rules() -> Iterator[_Pair]:
    us, tower, hf = "understanding.tower.", "vision_model.vision_tower.", "model.vision_model."
    patch, patch_hf = f"{tower}patch_embed.proj", f"{hf}embeddings.patch_embedding"
    yield _Pair(f"{us}patch.kernel", f"{patch}.weight", f"{patch_hf}.weight", CONV)
    yield _Pair(f"{us}patch.bias", f"{patch}.bias", f"{patch_hf}.bias")
    positions_hf = f"{hf}embeddings.position_embedding.weight"
    yield _Pair(f"{us}positions", f"{tower}pos_embed", positions_hf, leading_one=True)
    blocks, (old, new) = f"{us}blocks.", _SIG
    yield from _norm(f"{blocks}norm1", f"{old}norm1", f"{new}layer_norm1")
    for third, name in enumerate("qkv"):
        qkv, qkv_hf = f"{old}attn.qkv", f"{new}self_attn.{name}_proj"
        yield _Pair(f"{blocks}{name}.kernel", f"{qkv}.weight", f"{qkv_hf}.weight", LINEAR, third)
        yield _Pair(f"{blocks}{name}.bias", f"{qkv}.bias", f"{qkv_hf}.bias", SAME, third)
    yield from _linear(f"{blocks}out", f"{old}attn.proj", f"{new}self_attn.projection_layer")
    yield from _norm(f"{blocks}norm2", f"{old}norm2", f"{new}layer_norm2")
    for name in ("fc1", "fc2"):
        yield from _linear(f"{blocks}{name}", f"{old}mlp.{name}", f"{new}mlp.{name}")
    yield from _norm(f"{us}norm", f"{tower}norm", f"{hf}post_layernorm")
    aligner, aligner_hf = "aligner.layers.", "model.aligner."
    yield from _linear("understanding.aligner.first", f"{aligner}0", f"{aligner_hf}fc1")
    yield from _linear("understanding.aligner.second", f"{aligner}2", f"{aligner_hf}hidden_layers.0")  # fmt: skip  # noqa: E501


_PAIRS: tuple[_Pair, ...] = (*_decoder_rules(), *_image_rules(), *_understanding_rules())

# Inside the VQ model the port has its own words for the same structure.
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
    "original": Naming(tuple(pair.rule("original") for pair in _PAIRS), UNUSED),
    "hf": Naming(tuple(pair.rule("hf") for pair in _PAIRS), UNUSED, _HF_SEGMENTS),
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
    """The part that a foreign tensor belongs to by its name alone, None if to none."""
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
