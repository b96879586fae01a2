"""Sizes of the Janus-Pro networks. Plain numbers, no arrays.

Sources: released config.json files of deepseek-ai/Janus-Pro-1B and -7B; VQ-16 of LlamaGen.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DecoderConfig:
    """A pre-norm decoder of the Llama / Qwen2 family.

    `mrope_section`: numbers of rotary pairs for the time, height and width positions of multimodal
    rotary embedding; empty: ordinary positions.
    """

    vocab_size: int
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 1e4
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    tie_embeddings: bool = False
    mrope_section: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary embedding needs pairs")
        if self.mrope_section and (
            len(self.mrope_section) != 3 or sum(self.mrope_section) != self.head_dim // 2
        ):
            raise ValueError(
                f"mrope_section {list(self.mrope_section)} does not share {self.head_dim // 2} "
                "rotary pairs among time, height and width"
            )


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters: W + (alpha / rank) * A @ B on the linear layers named in `targets`.

    `targets` are attribute names of `Linear` layers (q, k, v, o, gate, up, down, ...).
    """

    rank: int = 32
    alpha: float = 32.0
    targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class SiglipConfig:
    """SigLIP vision tower, without class token."""

    image_size: int = 384
    patch_size: int = 16
    width: int = 1024
    mlp_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    norm_eps: float = 1e-6

    @property
    def num_tokens(self) -> int:
        """Output vectors of one image, 576 in the released models."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class VQConfig:
    """VQ-16 image tokenizer."""

    codebook_size: int = 16384
    code_dim: int = 8
    base_channels: int = 128
    z_channels: int = 256
    encoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if len(self.encoder_multipliers) != len(self.decoder_multipliers):
            raise ValueError("encoder_multipliers and decoder_multipliers differ in length")

    @property
    def downsampling(self) -> int:
        """Pixels per token along a side of the image."""
        return 2 ** (len(self.encoder_multipliers) - 1)


@dataclass(frozen=True)
class JanusConfig:
    """Janus-Pro: decoder, image tokenizer, understanding tower."""

    decoder: DecoderConfig
    vq: VQConfig = field(default_factory=VQConfig)
    siglip: SiglipConfig = field(default_factory=SiglipConfig)
    image_size: int = 384

    def __post_init__(self) -> None:
        if self.image_size % self.vq.downsampling:
            raise ValueError(
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
class ClipTowerConfig:
    """Sizes of one transformer."""

    width: int
    mlp_size: int
    num_layers: int
    num_heads: int
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.num_heads} heads")


@dataclass(frozen=True)
class ClipConfig:
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
    image_size: int = 224
    patch_size: int = 14
    vocab_size: int = 49408
    context_length: int = 77
    embedding_size: int = 1024

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )


VIT_H_14 = ClipConfig()
