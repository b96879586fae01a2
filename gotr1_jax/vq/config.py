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
class VqLossConfig:
    """Weights of the loss terms; defaults are LlamaGen's for the terms that it has."""

    l1: float = 1.0
    l2: float = 1.0
    codebook: float = 1.0
    commitment: float = 0.25


@dataclass(frozen=True)
class CropConfig:
    """The first part of training uses crops of the images, the rest uses full images.

    Crops contain less background, so that training sees more edges in the same time.
    """

    # Pixels a side; a multiple of the tokenizer's downsampling.
    size: int = 32
    # Steps with crops, and crops per step.
    steps: int = 3000
    batch_size: int = 32


@dataclass(frozen=True)
class RestartConfig:
    """Replacement of unused codes; see `vq.losses.restart_unused`."""

    # A code is replaced if its usage is below this, times 1 / codebook_size; 0: never.
    below: float = 0.02
    # Usage assigned to a replaced code, times 1 / codebook_size.
    fresh: float = 0.1
    # Decay per step of the running mean of usage.
    decay: float = 0.98
    # Codes are replaced only in the first steps, this many.
    steps: int = 2600


@dataclass(frozen=True, kw_only=True)
class VqTrainConfig(JobConfig):
    """The image tokenizer of the shapes world: `gotr1 train vq`."""

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "pictures": "images", "eval_pictures": "eval_images",
    }  # fmt: skip

    model: VQConfig
    steps: int = 3600
    # Full images per step, after the steps of `crop`.
    batch_size: int = 16
    # Number of training images, rendered at the start, and of held-out images for the evaluation.
    images: int = 20000
    eval_images: int = 1024
    # Before this step the decoder gets unquantized encodings, from which it learns colors much
    # sooner than through an untrained codebook.
    quantize_from: int = 300
    # Where the finished tokenizer is written in the released format; null: run_dir/model.
    export_dir: str | None = None
    # dtype of the weights in the released format.
    export_dtype: str = "bfloat16"
    log_every: int = 50
    weights: VqLossConfig = field(default_factory=VqLossConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)

    def check(self) -> None:
        super().check()
        positive("vq", batch_size=self.batch_size, images=self.images)
        positive("vq", eval_images=self.eval_images, log_every=self.log_every)
        if self.eval_images < 8:
            raise InputError(
                f"vq.eval_images is {self.eval_images}; use 8 or more, one row of "
                "reconstructions.png"
            )
        down = self.model.downsampling
        for name, size in (("crop.size", self.crop.size), ("the image size", IMAGE_SIZE)):
            if size % down or not 0 < size <= IMAGE_SIZE:
                raise InputError(
                    f"{name} is {size}; it must be a multiple of the downsampling {down} "
                    f"(model.encoder_multipliers) and at most {IMAGE_SIZE}"
                )
