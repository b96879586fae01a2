"""Sizes of Qwen2.5-VL. Plain numbers, no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.images.qwen import Geometry
from gotr1_jax.limits import Epsilon, LayerCount, ModelSize, Range, RopeTheta
from gotr1_jax.models.config import DecoderConfig


@dataclass(frozen=True)
class QwenVisionConfig(CheckedConfig):
    """The vision tower.

    Attributes:
      width, mlp_size, num_layers, num_heads: of its blocks.
      out_size: width of its output, the text model's input.
      full_attention: indices of the blocks with attention over the full image; the others attend
        within windows.
      geometry: of patches, units and windows.
      rope_theta, norm_eps: constants of the model family, not in released files.
    """

    width: ModelSize
    mlp_size: ModelSize
    num_layers: LayerCount
    num_heads: ModelSize
    out_size: ModelSize
    full_attention: tuple[Annotated[int, Range("[0, 1048576]")], ...]
    geometry: Geometry
    rope_theta: RopeTheta = 1e4
    norm_eps: Epsilon = 1e-6

    def check(self) -> None:
        """Sizes that fit each other."""
        # Half of the rotary pairs are for rows, half for columns.
        if self.width % (4 * self.num_heads):
            raise ConfigError(
                f"vision width {self.width} does not give {self.num_heads} heads whose size is a "
                "multiple of 4"
            )
        if any(not 0 <= i < self.num_layers for i in self.full_attention):
            raise ConfigError(
                f"full attention in blocks {list(self.full_attention)}, but there are "
                f"{self.num_layers}"
            )

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.width // self.num_heads


@dataclass(frozen=True)
class QwenConfig(CheckedConfig):
    """Qwen2.5-VL: text model and vision tower."""

    text: DecoderConfig
    vision: QwenVisionConfig

    def check(self) -> None:
        """Sizes that fit each other."""
        if not self.text.mrope_section:
            raise ConfigError("the text model of Qwen2.5-VL needs an mrope_section")
        if self.vision.out_size != self.text.hidden_size:
            raise ConfigError(
                f"the vision tower gives vectors of {self.vision.out_size}, the text model reads "
                f"{self.text.hidden_size}"
            )


def _qwen(hidden: int, mlp: int, layers: int, heads: tuple[int, int], vocab: int) -> QwenConfig:
    """Sizes as the released config.json files state them."""
    text = DecoderConfig(
        vocab, hidden, mlp, layers, *heads, head_dim=128, rope_theta=1e6, qkv_bias=True,
        tie_embeddings=vocab == 151936, mrope_section=(16, 24, 24),
    )  # fmt: skip
    vision = QwenVisionConfig(1280, 3420, 32, 16, hidden, (7, 15, 23, 31), Geometry())
    return QwenConfig(text, vision)


QWEN2_5_VL_3B = _qwen(2048, 11008, 36, (16, 2), 151936)
QWEN2_5_VL_7B = _qwen(3584, 18944, 28, (28, 4), 152064)
