"""The configuration of `gotr1 train vq`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from gotr1_jax.config import positive
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import VQConfig
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE
from gotr1_jax.trainer.config import JobConfig


@dataclass(frozen=True)
class VqLossWeights:
    """Weight of each part of the loss; the defaults are LlamaGen's where it has the part."""

    l1: float = 1.0
    l2: float = 1.0
    codebook: float = 1.0
    commitment: float = 0.25


@dataclass(frozen=True)
class CropConfig:
    """The first part of training sees windows of the images.

    A window costs less and a smaller part of it is background, so far more edges are seen in the
    same time; the rest of training sees whole images, as encoding and decoding will.
    """

    # Pixels a side; a multiple of the tokenizer's downsampling.
    size: int = 32
    # Steps with windows, and windows a step.
    steps: int = 3000
    batch_size: int = 32


@dataclass(frozen=True)
class RestartConfig:
    """Unused codes are moved to where the codebook covers worst; see `vq_loss.restart_unused`."""

    # A code used less than this times an even share is moved; 0 never moves any.
    below: float = 0.02
    # The share, times an even one, that a moved code starts from.
    fresh: float = 0.1
    # Decay a step of the running share of use.
    decay: float = 0.98
    # Only in this many first steps, so that codes can settle.
    steps: int = 2600


@dataclass(frozen=True, kw_only=True)
class VqTrainConfig(JobConfig):
    """The image tokenizer of the shapes world: `gotr1 train vq`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "pictures": "images", "eval_pictures": "eval_images",
    }  # fmt: skip

    model: VQConfig
    steps: int = 3600
    # Whole images a step, after the windows of `crop`.
    batch_size: int = 16
    # Images drawn beforehand to learn from (of training captions), and held-out ones to measure
    # the result on.
    images: int = 20000
    eval_images: int = 1024
    # Before this step the decoder sees the encodings themselves: it learns colors much sooner
    # than through a codebook that covers nothing yet.
    quantize_from: int = 300
    # Where the finished tokenizer is written in the released format; null: run_dir/model.
    export_dir: str | None = None
    # dtype of the weights in the released format.
    export_dtype: str = "bfloat16"
    log_every: int = 50
    weights: VqLossWeights = field(default_factory=VqLossWeights)
    crop: CropConfig = field(default_factory=CropConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)

    def check(self) -> None:
        super().check()
        positive("vq", batch_size=self.batch_size, images=self.images)
        positive("vq", eval_images=self.eval_images, log_every=self.log_every)
        if self.eval_images < 8:
            raise InputError(
                f"vq.eval_images is {self.eval_images}; use 8 or more, a row of the sheet that "
                "shows them"
            )
        down = self.model.downsampling
        for name, size in (("crop.size", self.crop.size), ("the image size", IMAGE_SIZE)):
            if size % down or not 0 < size <= IMAGE_SIZE:
                raise InputError(
                    f"{name} is {size}; it must be a multiple of the downsampling {down} "
                    f"(model.encoder_multipliers) and at most {IMAGE_SIZE}"
                )
