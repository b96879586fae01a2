"""The configuration of `gotr1 train vq`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Fraction, Range, RowCount, Steps, StepsOrNever, Weight
from gotr1_jax.models.config import VQConfig
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE
from gotr1_jax.trainer.config import JobConfig

# Rendered before the first step, 49 kB each, and the same for each variant.
_IMAGES = Range("[1, 1048576]", why="they are rendered into memory before the first step")


@dataclass(frozen=True)
class VqLossConfig(CheckedConfig):
    """Weights of the loss terms; defaults are LlamaGen's for the terms that it has."""

    # Weight of the mean absolute error of pixels in [-1, 1].
    l1: Weight = 1.0
    # Weight of the mean squared error of pixels in [-1, 1].
    l2: Weight = 1.0
    # Weight of the distance that pulls codes towards the encodings.
    codebook: Weight = 1.0
    # Weight of the distance that pulls encodings towards their codes.
    commitment: Weight = 0.25
    # Weight of l1 and l2 over the pixels at edges alone, next to those over all pixels.
    edges: Weight = 0.0
    # Encodings of a cell should not depend on pixels far away. Above 0, half of every batch are
    # variants of the other half, with other objects, and the squared distance of the encodings of
    # cells that look the same in both is a term of the loss, with this weight.
    consistency: Weight = 0.0
    # Pixels around a cell that must look the same too.
    consistency_margin: Annotated[int, Range(f"[0, {IMAGE_SIZE}]")] = 8


@dataclass(frozen=True)
class CropConfig(CheckedConfig):
    """The first part of training uses crops of the images, the rest uses full images.

    Crops contain less background, so that training sees more edges in the same time.
    """

    # Pixels a side; a multiple of the tokenizer's downsampling.
    size: Annotated[int, Range(f"[1, {IMAGE_SIZE}]")] = 32
    # The first steps, so many, use crops.
    steps: StepsOrNever = 3000
    # Crops per step.
    batch_size: RowCount = 32
    # Fraction of the crops that contain the centre of an object; the others are anywhere.
    on_objects: Fraction = 0.0


@dataclass(frozen=True)
class RestartConfig(CheckedConfig):
    """Replacement of unused codes; see `vq.losses.restart_unused`."""

    # A code is replaced if its usage is below this, times 1 / codebook_size; 0: never.
    below: Annotated[float, Range("[0, 1e6]")] = 0.02
    # Usage assigned to a replaced code, times 1 / codebook_size.
    fresh: Annotated[float, Range("[0, 1e6]")] = 0.1
    # Decay per step of the running mean of usage.
    decay: Annotated[float, Range("[0, 1)")] = 0.98
    # Codes are replaced only in the first steps, this many.
    steps: StepsOrNever = 2600


@dataclass(frozen=True)
class CellCodesConfig(CheckedConfig):
    """Codes that are clusters of what scenes show in a cell; see `shapes.cells`."""

    # The first training images, so many, whose cells are clustered.
    images: Annotated[int, _IMAGES] = 1500
    # Iterations of k-means.
    iterations: Steps = 10
    # Share of the codes that are of cells of several colors.
    mixed_share: Annotated[float, Range("[0, 0.9]")] = 0.35
    # How much more often than in the world an object covers another one in the training images.
    depth_weight: Annotated[float, Range("[1, 1000]")] = 4.0
    # How much the shape of an object matters beside its outline in the cell.
    shape_weight: Weight = 1.2
    # Weight of the encoder's cross entropy with the true codes, next to the losses of pixels.
    weight: Weight = 0.1
    # Divisor of the cosines between encodings and codes in that cross entropy.
    temperature: Annotated[float, Range("[0.001, 10]")] = 0.1
    # Weight of a cell of ground in that cross entropy, where other cells have 1.
    ground_weight: Weight = 0.1
    # In the last steps, this many, the decoder gets the encoder's codes in place of the true ones.
    last_steps_with_encoder: StepsOrNever = 300


@dataclass(frozen=True, kw_only=True)
class VqTrainConfig(JobConfig):
    """The image tokenizer of the shapes world: `gotr1 train vq`."""

    may_change: ClassVar[Collection[str]] = (
        "eval_images",
        "export_dir",
        "export_dtype",
        "log_every",
    )

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "pictures": "images", "eval_pictures": "eval_images",
    }  # fmt: skip

    model: VQConfig
    steps: Steps = 3600
    # Full images per step, after the steps of `crop`.
    batch_size: RowCount = 16
    # Number of training images, rendered at the start.
    images: Annotated[int, _IMAGES] = 20000
    # Number of held-out images for the evaluation; at least one row of reconstructions.png.
    eval_images: Annotated[int, Range("[8, 1048576]")] = 1024
    # Before this step the decoder gets unquantized encodings, from which it learns colors much
    # sooner than through an untrained codebook.
    quantize_from: StepsOrNever = 300
    # Where the finished tokenizer is written in the released format; null: run_dir/model.
    export_dir: FilledText | None = None
    # dtype of the weights in the released format.
    export_dtype: Literal["float32", "bfloat16"] = "float32"
    # Steps between lines of metrics.jsonl.
    log_every: Steps = 50
    weights: VqLossConfig = field(default_factory=VqLossConfig)
    crop: CropConfig = field(default_factory=CropConfig)
    restart: RestartConfig = field(default_factory=RestartConfig)
    # Codes found by clustering before the training; null: codes learned with the encoder.
    cells: CellCodesConfig | None = None

    @property
    def paired(self) -> bool:
        """Whether batches are pairs of a scene and a variant of it."""
        return self.weights.consistency > 0

    def check(self) -> None:
        """Images and crops that the tokenizer divides, batches of pairs."""
        super().check()
        self.optimizer.check_trained("convolutions")
        down = self.model.downsampling
        for name, size in (("crop.size", self.crop.size), ("model: the image size", IMAGE_SIZE)):
            if size % down:
                raise ConfigError(
                    f"{name} is {size}; it must be a multiple of the downsampling {down} "
                    "(model.encoder_multipliers)"
                )
        self._check_cells()
        for name, rows in (
            ("crop.batch_size", self.crop.batch_size),
            ("batch_size", self.batch_size),
        ):
            if self.paired and rows % 2:
                raise ConfigError(
                    f"{name} is {rows}; with weights.consistency above 0 a batch is made of pairs, "
                    "so that it must be even"
                )

    def _check_cells(self) -> None:
        """What codes of cells exclude."""
        if self.cells is None:
            return
        for name, value in (
            ("crop.steps", self.crop.steps),
            ("restart.steps", self.restart.steps),
            ("weights.consistency", self.weights.consistency),
        ):
            if value:
                raise ConfigError(
                    f"{name} is {value}, but the codes of cells belong to full images and stay "
                    f"what they are; set {name} to 0 or remove cells"
                )
        if self.cells.images > self.images:
            raise ConfigError(
                f"cells.images is {self.cells.images}, more than the {self.images} images"
            )
