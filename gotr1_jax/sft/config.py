"""The configuration of `gotr1 train sft`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gotr1_jax.config import positive
from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import DecoderConfig, SiglipConfig
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE
from gotr1_jax.trainer.config import JobConfig


@dataclass(frozen=True)
class NewModelConfig:
    """Sizes of a new model. Its vocabularies are those of the tokenizer and the VQ."""

    decoder: DecoderConfig
    siglip: SiglipConfig


@dataclass(frozen=True)
class SftDataConfig:
    """Examples (caption, plan, image) of the shapes world or of your own records."""

    # "shapes", or records, one name or a list: .jsonl, .parquet and .tar (WebDataset) files (with
    # wildcards), folders of such files, ids "org/name" of hub data sets, or an output folder of
    # `gotr1 tokenize-images`. Images are tokenised once.
    source: str | tuple[str, ...] = "shapes"
    # Format of the records; not for shapes.
    records: RecordsConfig = field(default_factory=RecordsConfig)
    # For shapes: number of examples, rendered and tokenised once and shuffled every epoch.
    examples: int = 20000
    # For shapes: fraction of examples in which the plan (and image) contradicts the caption.
    unfaithful_fraction: float = 0.0
    # For shapes: plans with boxes, or rationales: the same in words, without boxes.
    plans: Literal["boxes", "rationale"] = "boxes"
    # Rows are padded to these. Longer examples of the shapes world are an error, longer records are
    # skipped.
    max_prompt_tokens: int = 48
    max_plan_tokens: int = 80
    # Cache of image tokens and text lengths.
    cache_dir: str = ".cache/picture_tokens"

    def check(self) -> None:
        positive("data", examples=self.examples, max_plan_tokens=self.max_plan_tokens)
        positive("data", max_prompt_tokens=self.max_prompt_tokens)
        if not self.source:
            raise InputError("data.source is empty; name records, or shapes")
        if not 0 <= self.unfaithful_fraction <= 1:
            raise InputError(f"data.unfaithful_fraction is {self.unfaithful_fraction}; use 0 to 1")


@dataclass(frozen=True, kw_only=True)
class SftConfig(JobConfig):
    """Supervised training of plan and image: `gotr1 train sft`."""

    # Checkpoint of the VQ tokenizer: a folder (such as `gotr1 train vq` writes) or a hub id.
    vq: str
    batch_size: int = 64
    # Rows per forward and backward pass; gradients are accumulated.
    micro_batch: int = 64
    # Probability that a row's prompt and plan are replaced by the null context.
    caption_dropout: float = 0.1
    # A checkpoint to start from; null: a new model of size `model`.
    init: str | None = None
    model: NewModelConfig | None = None
    # Add the control tokens of plans with boxes to init's tokenizer if it lacks them, as
    # Janus-Pro's does; they take unused ids of the vocabulary.
    add_plan_tokens: bool = False
    # Where the finished model is written in the released format; null: run_dir/model.
    export_dir: str | None = None
    remat: Literal["none", "dots", "full"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    template: str = GOTR1_TEMPLATE
    # Loss weights of plan tokens, image tokens and the begin-of-image token.
    text_weight: float = 1.0
    image_weight: float = 1.0
    boi_weight: float = 1.0
    log_every: int = 20
    data: SftDataConfig = field(default_factory=SftDataConfig)

    def check(self) -> None:
        super().check()
        positive("sft", batch_size=self.batch_size, micro_batch=self.micro_batch)
        if (self.init is None) == (self.model is None):
            raise InputError(
                "set exactly one of init (a checkpoint) and model (sizes of a new one)"
            )
        if self.add_plan_tokens and self.init is None:
            raise InputError("add_plan_tokens is for init; the tokenizer of a new model has them")
        if self.batch_size % self.micro_batch:
            raise InputError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}"
            )
        if self.data.source == "shapes" and self.batch_size > self.data.examples:
            raise InputError(
                f"batch_size is {self.batch_size}, data.examples is {self.data.examples}; a batch "
                "holds each example once, so use more examples"
            )
        weights = (self.text_weight, self.image_weight, self.boi_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise InputError(f"text, image and boi weights are {weights}; none negative, not all 0")
        if not 0 <= self.caption_dropout < 1:
            raise InputError(f"caption_dropout is {self.caption_dropout}; use 0 to below 1")
