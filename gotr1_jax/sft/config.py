"""The configuration of `gotr1 train sft`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, Self

from gotr1_jax.config import CheckedConfig
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.data.config import RecordsConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.io.object_store import is_url
from gotr1_jax.limits import (
    FilledText,
    Fraction,
    ItemCount,
    PromptTemplate,
    Range,
    RowCount,
    Steps,
    StepsOrNever,
    TokenCount,
    Weight,
)
from gotr1_jax.models.config import DecoderConfig, SiglipConfig
from gotr1_jax.shapes.vocabulary import MAX_OBJECTS
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE
from gotr1_jax.trainer.config import JobConfig


@dataclass(frozen=True)
class NewModelConfig(CheckedConfig):
    """Sizes of a new model. Its vocabularies are those of the tokenizer and the VQ."""

    decoder: DecoderConfig
    siglip: SiglipConfig
    # The embeddings of number tokens begin as smooth functions of the number, so that near numbers
    # begin near; else as random as those of words.
    number_features: bool = False


@dataclass(frozen=True)
class SftDataConfig(CheckedConfig):
    """Examples (caption, plan, image) of the shapes world or of your own records."""

    may_change: ClassVar[Collection[str]] = ("cache_dir",)

    # "shapes", or records, one name or a list: .jsonl, .parquet and .tar (WebDataset) files (with
    # wildcards), folders of such files, ids "org/name" of hub data sets, or an output folder of
    # `gotr1 tokenize-images`. Images are tokenised once.
    source: FilledText | tuple[FilledText, ...] = "shapes"
    # Format of the records; not for shapes.
    records: RecordsConfig = field(default_factory=RecordsConfig)
    # For shapes: number of examples, rendered and tokenised once and shuffled every epoch.
    examples: ItemCount = 20000
    # For shapes: fraction of examples in which the plan (and image) contradicts the caption.
    unfaithful_fraction: Fraction = 0.0
    # For shapes: the most objects of a caption. Runs with 1, 2, and all of them, each from the
    # model of the one before (init), make a curriculum.
    max_objects: Annotated[int, Range(f"[1, {MAX_OBJECTS}]")] = MAX_OBJECTS
    # For shapes: image tokens are the true codes of the scenes, from the file cell_codes.npz of
    # `vq`, in place of what its encoder reads in the images. The image then follows from the plan.
    true_codes: bool = False
    # For shapes: plans with boxes, or rationales: the same in words, without boxes.
    plans: Literal["boxes", "rationale"] = "boxes"
    # Tokens that prompts are padded to. Longer examples of the shapes world are an error, longer
    # records are skipped.
    max_prompt_tokens: TokenCount = 48
    # Tokens that plans are padded to, as max_prompt_tokens.
    max_plan_tokens: TokenCount = 80
    # Cache of image tokens and text lengths.
    cache_dir: FilledText = ".cache/picture_tokens"

    def check(self) -> None:
        """A source that names something."""
        if not self.source:
            raise ConfigError("source is empty; name records, or shapes")
        if is_url(self.cache_dir):
            raise ConfigError(f"cache_dir is {self.cache_dir}; it must be a folder, not a URL")


@dataclass(frozen=True)
class SftSamplesConfig(CheckedConfig):
    """Samples during the training, to look at in the report and in trackers."""

    # Steps between them; the first and the last step have some too. 0: never.
    every: StepsOrNever = 0
    # How many captions, each sampled once, the same at every step.
    captions: Annotated[int, Range("[1, 1024]")] = 8
    # "shapes" (held-out captions of the shapes world), or a file of captions, as captions.source
    # of gotr1 train grpo.
    source: FilledText = "shapes"


@dataclass(frozen=True, kw_only=True)
class SftConfig(JobConfig):
    """Supervised training of plan and image: `gotr1 train sft`."""

    may_change: ClassVar[Collection[str]] = (
        "micro_batch", "length_buckets", "remat", "export_dir", "export_every", "log_every",
        "sampling", "samples",
    )  # fmt: skip
    renamed_keys: ClassVar[Mapping[str, str]] = {"plan_buckets": "length_buckets"}

    # Checkpoint of the VQ tokenizer: a folder (such as `gotr1 train vq` writes), a hub id, or
    # "embedded".
    vq: FilledText
    # Examples per step.
    batch_size: RowCount = 64
    # Rows per forward and backward pass; gradients are accumulated.
    micro_batch: RowCount = 64
    # Lengths that prompts with their plans are padded to: so many, in equal steps from a quarter of
    # the longest that `data` allows up to it. Rows of like length share a micro-batch, so short
    # ones cost less where batch_size is several micro-batches. Every length is compiled.
    length_buckets: Annotated[int, Range("[1, 32]")] = 1
    # Probability that a row's prompt and plan are replaced by the null context.
    caption_dropout: Annotated[float, Range("[0, 1)")] = 0.1
    # A checkpoint to start from, as vq; null: a new model of size `model`.
    init: FilledText | None = None
    model: NewModelConfig | None = None
    # Add the control tokens of plans with boxes to init's tokenizer if it lacks them, as
    # Janus-Pro's does; they take unused ids of the vocabulary.
    add_plan_tokens: bool = False
    # Where the finished model is written in the released format; null: run_dir/model.
    export_dir: FilledText | None = None
    # Every so many steps the model so far is written to run_dir/model_000500; 0: never.
    export_every: StepsOrNever = 0
    # What the backward pass recomputes: nothing, all but matrix products, or everything.
    remat: Literal["none", "dots", "full"] = "none"
    # dtype of activations; parameters and logits are always float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # The prompt around {caption}. Null: as init's generation_config.json says, else GoT-R1's.
    template: PromptTemplate | None = None
    # What the finished model's generation_config.json says, besides the template and the longest
    # plan of the training. Null: as init's says.
    sampling: GenerationConfig = field(default_factory=GenerationConfig)
    # Loss weight of plan tokens.
    text_weight: Weight = 1.0
    # Loss weight of image tokens.
    image_weight: Weight = 1.0
    # Loss weight of the begin-of-image token, which ends the plan.
    boi_weight: Weight = 1.0
    # Steps between lines of metrics.jsonl.
    log_every: Steps = 20
    samples: SftSamplesConfig = field(default_factory=SftSamplesConfig)
    data: SftDataConfig = field(default_factory=SftDataConfig)

    @property
    def prompt_template(self) -> str:
        """The prompt around a caption."""
        return GOTR1_TEMPLATE if self.template is None else self.template

    @property
    def sampled(self) -> GenerationConfig:
        """What is set of what a checkpoint may say and training depends on."""
        return GenerationConfig(template=self.template)

    def sampled_as(self, settings: GenerationConfig) -> Self:
        """A copy with the template of `settings`."""
        return replace(self, template=settings.template)

    @property
    def wanted(self) -> GenerationConfig:
        """How the finished model wants to be sampled."""
        trained = GenerationConfig(
            max_plan_tokens=max(1, self.data.max_plan_tokens - 1),  # without BOI
            template=self.prompt_template,
        )
        return self.sampling.or_else(trained)

    def check(self) -> None:
        """One start, whole micro-batches, enough examples, and something to learn."""
        super().check()
        if (self.init is None) == (self.model is None):
            raise ConfigError(
                "init and model exclude each other: set exactly one of init (a checkpoint) and "
                "model (sizes of a new one)"
            )
        if self.add_plan_tokens and self.init is None:
            raise ConfigError("add_plan_tokens is for init; the tokenizer of a new model has them")
        if self.batch_size % self.micro_batch:
            raise ConfigError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}"
            )
        if self.data.source == "shapes" and self.batch_size > self.data.examples:
            raise ConfigError(
                f"batch_size is {self.batch_size}, data.examples is {self.data.examples}; a batch "
                "holds each example once, so use more examples"
            )
        if self.sampling.template is not None:
            raise ConfigError(
                "sampling.template is set; the model is sampled with the template of its training: "
                "set template"
            )
        if self.text_weight == self.image_weight == self.boi_weight == 0:
            raise ConfigError(
                "text_weight, image_weight and boi_weight are all 0; give one a weight"
            )
