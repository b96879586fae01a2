"""Foreign tensor names: where each of our arrays lies in a released checkpoint.

`RULES` is the whole mapping, one line a kind of array. `{l}` counts the layers that we stack
along a leading axis; `{x}` stands for the same dotted words on both sides. Names of the
Hugging Face port follow from it by `HF_SEGMENTS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Format = Literal["original", "hf"]
Shape = tuple[int, ...]

# axes[d] is the axis of the foreign array that becomes our axis d.
SAME: Shape | None = None
LINEAR: Shape = (1, 0)  # (out, in) -> (in, out)
CONV: Shape = (2, 3, 1, 0)  # OIHW -> HWIO


@dataclass(frozen=True)
class Rule:
    """One kind of array: its path here, its names there, and how it is laid out there."""

    ours: str
    original: str
    hf: str
    axes: Shape | None = SAME
    third: int | None = None  # original fuses q, k, v along its first axis: which of the three
    leading_one: bool = False  # original has a leading axis of length 1


@dataclass(frozen=True)
class Source:
    """Where one of our arrays, or one layer of a stacked one, lies in a checkpoint.

    Attributes:
      name: the foreign tensor.
      shape: the shape that the whole foreign tensor must have.
      layer: our index along the stacked axis, or None for an array that is not stacked.
      axes: permutation from foreign to our axes, None if equal.
      third: which third of the foreign tensor's first axis, None for all of it.
      leading_one: whether the foreign tensor has a first axis of length 1 that we lack.
    """

    name: str
    shape: Shape
    layer: int | None
    axes: Shape | None
    third: int | None
    leading_one: bool


_LLM = ("language_model.model.layers.{l}.", "model.language_model.layers.{l}.")
_SIG = ("vision_model.vision_tower.blocks.{l}.", "model.vision_model.encoder.layers.{l}.")


def _linear(ours: str, original: str, hf: str) -> tuple[Rule, Rule]:
    """A linear layer with bias."""
    return (
        Rule(f"{ours}.kernel", f"{original}.weight", f"{hf}.weight", LINEAR),
        Rule(f"{ours}.bias", f"{original}.bias", f"{hf}.bias"),
    )


def _norm(ours: str, original: str, hf: str) -> tuple[Rule, Rule]:
    """A layer norm."""
    return (
        Rule(f"{ours}.scale", f"{original}.weight", f"{hf}.weight"),
        Rule(f"{ours}.bias", f"{original}.bias", f"{hf}.bias"),
    )


def _decoder_rules() -> Iterator[Rule]:
    llm, llm_hf = "language_model.model.", "model.language_model."
    yield Rule("policy.decoder.embed.table", f"{llm}embed_tokens.weight", f"{llm_hf}embed_tokens.weight")  # fmt: skip  # noqa: E501
    yield Rule("policy.decoder.norm.scale", f"{llm}norm.weight", f"{llm_hf}norm.weight")
    yield Rule("policy.decoder.lm_head.kernel", "language_model.lm_head.weight", "lm_head.weight", LINEAR)  # fmt: skip  # noqa: E501
    layers, (old, new) = "policy.decoder.layers.", _LLM
    for ours, theirs in (
        *((n, f"self_attn.{n}_proj") for n in ("q", "k", "v", "o")),
        *((n, f"mlp.{n}_proj") for n in ("gate", "up", "down")),
    ):
        yield Rule(
            f"{layers}{ours}.kernel", f"{old}{theirs}.weight", f"{new}{theirs}.weight", LINEAR
        )
    for ours, theirs in (
        ("attention_norm", "input_layernorm"),
        ("mlp_norm", "post_attention_layernorm"),
    ):
        yield Rule(f"{layers}{ours}.scale", f"{old}{theirs}.weight", f"{new}{theirs}.weight")


def _picture_rules() -> Iterator[Rule]:
    yield Rule("policy.gen_embed.table", "gen_embed.weight", "model.generation_embeddings.weight")
    aligner, aligner_hf = "gen_aligner.layers.", "model.generation_aligner."
    yield from _linear("policy.gen_aligner.first", f"{aligner}0", f"{aligner_hf}fc1")
    yield from _linear("policy.gen_aligner.second", f"{aligner}2", f"{aligner_hf}hidden_layers.0")
    head, head_hf = "gen_head.", "model.generation_head."
    yield from _linear("policy.gen_head.first", f"{head}output_mlp_projector", f"{head_hf}proj_out")
    yield from _linear("policy.gen_head.second", f"{head}vision_head", f"{head_hf}vision_head")
    vq, vq_hf = "gen_vision_model.", "model.vqmodel."
    table = "quantize.embedding"
    yield Rule(f"vq.{table}", f"{vq}{table}.weight", f"{vq_hf}{table}.weight")
    yield Rule("vq.{x}.kernel", f"{vq}{{x}}.weight", f"{vq_hf}{{x}}.weight", CONV)
    yield Rule("vq.{x}.scale", f"{vq}{{x}}.weight", f"{vq_hf}{{x}}.weight")
    yield Rule("vq.{x}.bias", f"{vq}{{x}}.bias", f"{vq_hf}{{x}}.bias")


def _understanding_rules() -> Iterator[Rule]:
    us, tower, hf = "understanding.tower.", "vision_model.vision_tower.", "model.vision_model."
    patch, patch_hf = f"{tower}patch_embed.proj", f"{hf}embeddings.patch_embedding"
    yield Rule(f"{us}patch.kernel", f"{patch}.weight", f"{patch_hf}.weight", CONV)
    yield Rule(f"{us}patch.bias", f"{patch}.bias", f"{patch_hf}.bias")
    positions_hf = f"{hf}embeddings.position_embedding.weight"
    yield Rule(f"{us}positions", f"{tower}pos_embed", positions_hf, leading_one=True)
    blocks, (old, new) = f"{us}blocks.", _SIG
    yield from _norm(f"{blocks}norm1", f"{old}norm1", f"{new}layer_norm1")
    for third, name in enumerate("qkv"):
        qkv, qkv_hf = f"{old}attn.qkv", f"{new}self_attn.{name}_proj"
        yield Rule(f"{blocks}{name}.kernel", f"{qkv}.weight", f"{qkv_hf}.weight", LINEAR, third)
        yield Rule(f"{blocks}{name}.bias", f"{qkv}.bias", f"{qkv_hf}.bias", SAME, third)
    yield from _linear(f"{blocks}out", f"{old}attn.proj", f"{new}self_attn.projection_layer")
    yield from _norm(f"{blocks}norm2", f"{old}norm2", f"{new}layer_norm2")
    for name in ("fc1", "fc2"):
        yield from _linear(f"{blocks}{name}", f"{old}mlp.{name}", f"{new}mlp.{name}")
    yield from _norm(f"{us}norm", f"{tower}norm", f"{hf}post_layernorm")
    aligner, aligner_hf = "aligner.layers.", "model.aligner."
    yield from _linear("understanding.aligner.first", f"{aligner}0", f"{aligner_hf}fc1")
    yield from _linear("understanding.aligner.second", f"{aligner}2", f"{aligner_hf}hidden_layers.0")  # fmt: skip  # noqa: E501


RULES: tuple[Rule, ...] = (*_decoder_rules(), *_picture_rules(), *_understanding_rules())

# Inside the VQ model the port has its own words for the same structure.
HF_SEGMENTS: tuple[tuple[str, str], ...] = (
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


def part_of(path: str) -> str:
    """ "policy", "vq" or "understanding", of a path here."""
    return path.split(".", 1)[0]


def sources(path: str, shape: Shape, form: Format) -> list[Source]:
    """The foreign tensors that make up our array `path` (dotted, its part in front) of `shape`.

    One for each layer of a stacked array, in order; otherwise one. KeyError if no rule knows it.
    """
    rule, words = _rule_of(path)
    name = rule.original if form == "original" else rule.hf
    name = name.replace("{x}", words)
    if form == "hf":
        for pattern, replacement in HF_SEGMENTS:
            name = re.sub(pattern, replacement, name)
    stacked = "{l}" in name
    third = rule.third if form == "original" else None
    leading_one = rule.leading_one and form == "original"
    foreign = _foreign_shape(shape[1:] if stacked else shape, rule.axes, third, leading_one)
    if not stacked:
        return [Source(name, foreign, None, rule.axes, third, leading_one)]
    return [
        Source(name.format(l=layer), foreign, layer, rule.axes, third, leading_one)
        for layer in range(shape[0])
    ]


def expected_tensors(leaves: Mapping[str, Shape], form: Format) -> dict[str, Shape]:
    """Names and shapes of the foreign tensors that hold exactly the arrays `leaves`."""
    return {
        source.name: source.shape
        for path, shape in leaves.items()
        for source in sources(path, shape, form)
    }


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


def _rule_of(path: str) -> tuple[Rule, str]:
    """The first rule for `path`, and what its `{x}` stands for."""
    for rule in RULES:
        pattern = re.escape(rule.ours).replace(r"\{x\}", "(.+)")
        if match := re.fullmatch(pattern, path):
            return rule, match[1] if match.groups() else ""
    raise KeyError(f"no checkpoint name is known for {path}")


def _foreign_shape(shape: Shape, axes: Shape | None, third: int | None, one: bool) -> Shape:
    if axes is not None:
        foreign = [0] * len(shape)
        for ours, theirs in enumerate(axes):
            foreign[theirs] = shape[ours]
        shape = tuple(foreign)
    if third is not None:
        shape = (3 * shape[0], *shape[1:])
    return (1, *shape) if one else shape
