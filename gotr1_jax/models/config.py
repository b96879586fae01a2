"""Sizes of the Janus-Pro networks. Plain numbers, no arrays.

Sources: released config.json files of deepseek-ai/Janus-Pro-1B and -7B; VQ-16 of LlamaGen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import Epsilon, LayerCount, ModelSize, Range, RopeTheta

LoraTarget = Literal["q", "k", "v", "o", "gate", "up", "down"]
# Rotary pairs of an axis.
_Pairs = Annotated[int, Range("[0, 1048576]")]


@dataclass(frozen=True)
class DecoderConfig(CheckedConfig):
    """A pre-norm decoder of the Llama / Qwen family.

    Attributes:
      vocab_size: tokens of the vocabulary.
      hidden_size: width of the residual stream.
      mlp_size: width inside a layer's gated MLP.
      num_layers: number of layers.
      num_heads: attention heads of queries.
      num_kv_heads: attention heads of keys and values, each shared by equally many of the queries'.
      head_dim: width of an attention head.
      rope_theta: base of the rotary frequencies.
      norm_eps: constant added to the mean square in RMSNorm.
      qkv_bias: whether queries, keys and values have biases, as in Qwen2.
      tie_embeddings: whether the output head has the weights of the token embedding.
      mrope_section: numbers of rotary pairs for the time, height and width positions of multimodal
        rotary embedding; empty: ordinary positions.
      mrope_interleaved: whether these pairs take turns, as in Qwen3-VL: time, height, width, time,
        ...; otherwise those of time come first, then those of height, then those of width.
      qk_norm: whether each head of queries and keys is normalised (RMSNorm, with one scale for all
        heads) before rotary embedding, as in Qwen3.
    """

    vocab_size: ModelSize
    hidden_size: ModelSize
    mlp_size: ModelSize
    num_layers: LayerCount
    num_heads: ModelSize
    num_kv_heads: ModelSize
    head_dim: ModelSize
    rope_theta: RopeTheta = 1e4
    norm_eps: Epsilon = 1e-6
    qkv_bias: bool = False
    tie_embeddings: bool = False
    mrope_section: tuple[_Pairs, ...] = ()
    mrope_interleaved: bool = False
    qk_norm: bool = False

    def check(self) -> None:
        """Sizes that divide each other."""
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")
        if self.mrope_section and (
            len(self.mrope_section) != 3 or sum(self.mrope_section) != self.head_dim // 2
        ):
            raise ConfigError(
                f"mrope_section {list(self.mrope_section)} does not share {self.head_dim // 2} "
                "rotary pairs among time, height and width"
            )
        if self.mrope_interleaved:
            self._check_turns()

    def _check_turns(self) -> None:
        """Height has the pairs 1, 4, 7, ..., width 2, 5, 8, ...; all of them must be there."""
        if not self.mrope_section:
            raise ConfigError("mrope_interleaved is true, which needs an mrope_section")
        _, height, width = self.mrope_section
        if max(3 * height - 2, 3 * width - 1) >= self.head_dim // 2:
            raise ConfigError(
                f"mrope_section {list(self.mrope_section)} cannot be interleaved: "
                f"{self.head_dim // 2} rotary pairs have too few turns"
            )


@dataclass(frozen=True)
class LoraConfig(CheckedConfig):
    """Low-rank adapters: W + (alpha / rank) * A @ B on the linear layers named in `targets`.

    Attributes:
      rank: columns of A and rows of B.
      alpha: the product is scaled by alpha / rank.
      targets: attribute names of the `Linear` layers of a decoder block that have adapters.
    """

    rank: ModelSize = 32
    alpha: Annotated[float, Range("(0, 1e6]")] = 32.0
    targets: tuple[LoraTarget, ...] = get_args(LoraTarget)


@dataclass(frozen=True)
class SiglipConfig(CheckedConfig):
    """SigLIP vision tower, without class token.

    Attributes:
      image_size: side of the images in pixels.
      patch_size: side of a patch in pixels.
      width: width of the residual stream.
      mlp_size: width inside a layer's MLP.
      num_layers: number of layers.
      num_heads: attention heads.
      norm_eps: constant added to the variance in LayerNorm.
    """

    image_size: ModelSize = 384
    patch_size: ModelSize = 16
    width: ModelSize = 1024
    mlp_size: ModelSize = 4096
    num_layers: LayerCount = 24
    num_heads: ModelSize = 16
    norm_eps: Epsilon = 1e-6

    def check(self) -> None:
        """Sizes that divide each other."""
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.num_heads} heads")

    @property
    def num_tokens(self) -> int:
        """Output vectors of one image, 576 in the released models."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class VQConfig(CheckedConfig):
    """VQ-16 image tokenizer.

    Attributes:
      codebook_size: number of codes.
      code_dim: numbers of a code.
      base_channels: channels at full resolution; the multipliers multiply them.
      z_channels: channels of the encoder's output and of the decoder's input.
      encoder_multipliers: channels of each level of the encoder, from full resolution down, as
        multiples; each level but the last halves the sides.
      decoder_multipliers: the same of the decoder, in the encoder's order.
      num_res_blocks: residual blocks of a level of the encoder; the decoder has one more.
      norm_groups: groups of the group normalisations.
    """

    codebook_size: ModelSize = 16384
    code_dim: ModelSize = 8
    base_channels: ModelSize = 128
    z_channels: ModelSize = 256
    encoder_multipliers: tuple[ModelSize, ...] = (1, 1, 2, 2, 4)
    decoder_multipliers: tuple[ModelSize, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: LayerCount = 2
    norm_groups: ModelSize = 32

    def check(self) -> None:
        """Sizes that divide each other."""
        if len(self.encoder_multipliers) != len(self.decoder_multipliers):
            raise ConfigError("encoder_multipliers and decoder_multipliers differ in length")
        if not 1 <= len(self.encoder_multipliers) <= 16:
            raise ConfigError(
                f"encoder_multipliers has {len(self.encoder_multipliers)} levels; use 1 to 16"
            )
        widths = {
            self.base_channels * m for m in self.encoder_multipliers + self.decoder_multipliers
        }
        for width in sorted({self.base_channels} | widths):
            if width % self.norm_groups:
                raise ConfigError(
                    f"norm_groups {self.norm_groups} does not divide {width} channels"
                )

    @property
    def downsampling(self) -> int:
        """Pixels per token along a side of the image."""
        return 2 ** (len(self.encoder_multipliers) - 1)


@dataclass(frozen=True)
class JanusConfig(CheckedConfig):
    """Janus-Pro: decoder, image tokenizer, understanding tower."""

    decoder: DecoderConfig
    vq: VQConfig = field(default_factory=VQConfig)
    siglip: SiglipConfig = field(default_factory=SiglipConfig)
    image_size: ModelSize = 384

    def check(self) -> None:
        """Sizes that divide each other."""
        if self.image_size % self.vq.downsampling:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of the VQ downsampling "
                f"{self.vq.downsampling}"
            )

    @property
    def image_vocab(self) -> int:
        """Number of image token ids."""
        return self.vq.codebook_size

    @property
    def grid(self) -> int:
        """Image tokens per side."""
        return self.image_size // self.vq.downsampling

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of one image, row-major."""
        return self.grid**2


def _decoder(hidden: int, mlp: int, layers: int, heads: int) -> DecoderConfig:
    return DecoderConfig(102400, hidden, mlp, layers, heads, heads, hidden // heads)


JANUS_PRO_1B = JanusConfig(_decoder(2048, 5632, 24, 16))
JANUS_PRO_7B = JanusConfig(_decoder(4096, 11008, 30, 32))


@dataclass(frozen=True)
class ClipTowerConfig(CheckedConfig):
    """Sizes of one transformer, and the activation of its MLPs.

    quick_gelu, x · sigmoid(1.702 x), is that of OpenAI's CLIPs; open_clip's have the exact one.
    """

    width: ModelSize
    mlp_size: ModelSize
    num_layers: LayerCount
    num_heads: ModelSize
    norm_eps: Epsilon = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "gelu"

    def check(self) -> None:
        """Sizes that divide each other."""
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of {self.num_heads} heads")


@dataclass(frozen=True)
class ClipConfig(CheckedConfig):
    """Sizes of a CLIP; the defaults are those of ViT-H/14 and HPS v2.1.

    Attributes:
      vision, text: the towers.
      image_size, patch_size: pixels per side.
      vocab_size: text ids; the last one ends a caption, the one before starts it.
      context_length: maximum tokens of a caption.
      embedding_size: width of the common embedding space.
    """

    vision: ClipTowerConfig = ClipTowerConfig(1280, 5120, 32, 16)
    text: ClipTowerConfig = ClipTowerConfig(1024, 4096, 24, 16)
    image_size: ModelSize = 224
    patch_size: ModelSize = 14
    vocab_size: ModelSize = 49408
    context_length: ModelSize = 77
    embedding_size: ModelSize = 1024

    def check(self) -> None:
        """Sizes that divide each other."""
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )


VIT_H_14 = ClipConfig()
