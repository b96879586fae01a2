"""Sizes of Qwen2.5-VL and Qwen3-VL. Plain numbers, no arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.images.qwen import Geometry
from gotr1_jax.limits import Epsilon, LayerCount, ModelSize, Range, RopeTheta
from gotr1_jax.models.config import DecoderConfig

BlockIndex = Annotated[int, Range("[0, 1048576]")]
"""Index of a block of a tower."""


@dataclass(frozen=True)
class VisionConfig(CheckedConfig):
    """A vision tower.

    Attributes:
      width, mlp_size, num_layers, num_heads: of its blocks.
      out_size: width of its output, the text model's input.
      geometry: of patches, units and windows.
      rope_theta, norm_eps: constants of the model family, not in released files.
    """

    width: ModelSize
    mlp_size: ModelSize
    num_layers: LayerCount
    num_heads: ModelSize
    out_size: ModelSize
    geometry: Geometry = field(kw_only=True)
    rope_theta: RopeTheta = field(default=1e4, kw_only=True)
    norm_eps: Epsilon = field(default=1e-6, kw_only=True)

    def check(self) -> None:
        """Sizes that fit each other."""
        # Half of the rotary pairs are for rows, half for columns.
        if self.width % (4 * self.num_heads):
            raise ConfigError(
                f"vision width {self.width} does not give {self.num_heads} heads whose size is a "
                "multiple of 4"
            )

    def check_blocks(self, what: str, blocks: tuple[int, ...]) -> None:
        """ConfigError for a block that the tower does not have."""
        if any(not 0 <= i < self.num_layers for i in blocks):
            raise ConfigError(f"{what} in blocks {list(blocks)}, but there are {self.num_layers}")

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.width // self.num_heads

    @property
    def vector_size(self) -> int:
        """Numbers of a unit's vector, see `models.qwen_vl`."""
        return self.out_size


@dataclass(frozen=True)
class QwenVisionConfig(VisionConfig):
    """Qwen2.5-VL's tower.

    Attributes:
      full_attention: indices of the blocks with attention over the full image; the others attend
        within windows.
    """

    full_attention: tuple[BlockIndex, ...]

    def check(self) -> None:
        """Sizes that fit each other."""
        super().check()
        self.check_blocks("full attention", self.full_attention)
        if not self.geometry.window_size:
            raise ConfigError("the vision tower of Qwen2.5-VL needs a window_size")


@dataclass(frozen=True)
class Qwen3VisionConfig(VisionConfig):
    """Qwen3-VL's tower; every block attends over the full image.

    Attributes:
      position_side: rows, and columns, of its square table of positions, which is interpolated to
        the patches of an image.
      deepstack: ascending indices of the blocks whose outputs go to the text model's first layers.
    """

    position_side: ModelSize
    deepstack: tuple[BlockIndex, ...]

    def check(self) -> None:
        """Sizes that fit each other."""
        super().check()
        self.check_blocks("DeepStack", self.deepstack)
        if sorted(set(self.deepstack)) != list(self.deepstack):
            raise ConfigError(f"DeepStack in blocks {list(self.deepstack)}, which do not ascend")

    @property
    def vector_size(self) -> int:
        """Numbers of a unit's vector, see `models.qwen_vl`."""
        return self.out_size * (1 + len(self.deepstack))


@dataclass(frozen=True)
class QwenConfig(CheckedConfig):
    """Qwen2.5-VL or Qwen3-VL: text model and vision tower."""

    text: DecoderConfig
    vision: VisionConfig

    def check(self) -> None:
        """Sizes that fit each other."""
        if not self.text.mrope_section:
            raise ConfigError("the text model of a Qwen-VL needs an mrope_section")
        if self.vision.out_size != self.text.hidden_size:
            raise ConfigError(
                f"the vision tower gives vectors of {self.vision.out_size}, the text model reads "
                f"{self.text.hidden_size}"
            )
        layers = self.vision.vector_size // self.vision.out_size - 1
        if layers > self.text.num_layers:
            raise ConfigError(
                f"DeepStack is for the first {layers} layers of the text model, which has "
                f"{self.text.num_layers}"
            )

    @property
    def is_qwen3(self) -> bool:
        """Whether it is a Qwen3-VL: its chats have no system message of their own, and its boxes
        are in thousandths of an image's sides; Qwen2.5-VL's are in pixels."""
        return isinstance(self.vision, Qwen3VisionConfig)


def _qwen2_5(hidden: int, mlp: int, layers: int, heads: tuple[int, int], vocab: int) -> QwenConfig:
    """Sizes as the released config.json files state them."""
    text = DecoderConfig(
        vocab, hidden, mlp, layers, *heads, head_dim=128, rope_theta=1e6, qkv_bias=True,
        tie_embeddings=vocab == 151936, mrope_section=(16, 24, 24),
    )  # fmt: skip
    vision = QwenVisionConfig(1280, 3420, 32, 16, hidden, (7, 15, 23, 31), geometry=Geometry())
    return QwenConfig(text, vision)


def _qwen3(
    hidden: int, mlp: int, layers: int, heads: int, tied: bool, tower: tuple[int, int, int],
    deepstack: tuple[int, ...],
) -> QwenConfig:  # fmt: skip
    """Sizes as the released config.json files state them; tower: width, mlp, blocks."""
    text = DecoderConfig(
        151936, hidden, mlp, layers, heads, 8, head_dim=128, rope_theta=5e6, tie_embeddings=tied,
        mrope_section=(24, 20, 20), mrope_interleaved=True, qk_norm=True,
    )  # fmt: skip
    vision = Qwen3VisionConfig(
        *tower, 16, hidden, 48, deepstack, geometry=Geometry(patch_size=16, window_size=0)
    )
    return QwenConfig(text, vision)


QWEN2_5_VL_3B = _qwen2_5(2048, 11008, 36, (16, 2), 151936)
QWEN2_5_VL_7B = _qwen2_5(3584, 18944, 28, (28, 4), 152064)
_SMALL, _LARGE = ((1024, 4096, 24), (5, 11, 17)), ((1152, 4304, 27), (8, 16, 24))
QWEN3_VL_2B = _qwen3(2048, 6144, 28, 16, True, *_SMALL)
QWEN3_VL_4B = _qwen3(2560, 9728, 36, 32, True, *_SMALL)
QWEN3_VL_8B = _qwen3(4096, 12288, 36, 32, False, *_LARGE)
QWEN3_VL_32B = _qwen3(5120, 25600, 64, 64, False, *_LARGE)
