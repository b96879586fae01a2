"""The configuration of `gotr1 train judge`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.data.config import QuestionRecordsConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.images.qwen import Geometry
from gotr1_jax.limits import (
    FilledText,
    Fraction,
    ItemCount,
    LayerCount,
    ModelSize,
    Range,
    RopeTheta,
    RowCount,
    Steps,
    TokenCount,
)
from gotr1_jax.models.config import DecoderConfig, LoraConfig
from gotr1_jax.models.qwen_config import (
    BlockIndex,
    Qwen3VisionConfig,
    QwenConfig,
    QwenVisionConfig,
    VisionConfig,
)
from gotr1_jax.rewards.multimodal.questions import (
    LAYOUT_TERM,
    MULTIMODAL_TERMS,
    QuestionsConfig,
)
from gotr1_jax.trainer.config import JobConfig
from gotr1_jax.vlm_engine.config import UNIT_PIXELS

_MAX_PIXELS = Annotated[int, Range(f"[{UNIT_PIXELS}, 1e8]")]


@dataclass(frozen=True)
class NewVisionConfig(CheckedConfig):
    """Sizes of a new vision tower.

    Qwen2.5-VL's: patches of 14 px, units of 2 by 2, windows of 112 px. Qwen3-VL's: patches of
    16 px, units of 2 by 2, no windows, and a table of absolute positions.
    """

    # Width of the residual stream.
    width: ModelSize
    # Width inside a block's gated MLP.
    mlp_size: ModelSize
    # Number of blocks.
    num_layers: LayerCount
    # Attention heads.
    num_heads: ModelSize
    # Qwen2.5-VL: indices of the blocks with attention over the whole image; the others attend in
    # windows.
    full_attention: tuple[BlockIndex, ...] = ()
    # Qwen3-VL: rows, and columns, of the table of positions, interpolated to an image's patches;
    # null: 8.
    position_side: ModelSize | None = None
    # Qwen3-VL: ascending indices of the blocks whose outputs go to the text model's first layers.
    deepstack: tuple[BlockIndex, ...] = ()


@dataclass(frozen=True)
class NewTextConfig(CheckedConfig):
    """Sizes of a new text model. Its embedding is tied to its head.

    Attributes:
      hidden_size: width of the residual stream.
      mlp_size: width inside a layer's gated MLP.
      num_layers: number of layers.
      num_heads: attention heads of queries; a head is hidden_size / num_heads wide.
      num_kv_heads: attention heads of keys and values, each shared by equally many of the queries'.
      rope_theta: base of the rotary frequencies.
    """

    hidden_size: ModelSize
    mlp_size: ModelSize
    num_layers: LayerCount
    num_heads: ModelSize
    num_kv_heads: ModelSize
    rope_theta: RopeTheta = 1e4

    def check(self) -> None:
        """Heads with enough rotary pairs for time, height and width."""
        if self.hidden_size % (8 * self.num_heads):
            raise ConfigError(
                f"hidden_size {self.hidden_size} does not give {self.num_heads} heads whose size "
                "is a multiple of 8"
            )


@dataclass(frozen=True)
class NewJudgeConfig(CheckedConfig):
    """A new Qwen-VL. Its vocabulary is made of the texts of the training data."""

    # qwen3_vl: answers boxes in thousandths of an image's sides, and its vision tower has a table
    # of absolute positions.
    family: Literal["qwen2_5_vl", "qwen3_vl"] = field(default="qwen2_5_vl", kw_only=True)
    text: NewTextConfig
    vision: NewVisionConfig
    # Tokens at most. The 8 control tokens, 256 bytes, the numbers up to 999 and the texts that many
    # examples share (a judge's instructions) always are tokens; frequent words fill the rest.
    vocab_limit: Annotated[int, Range("[2048, 1048576]")] = 4096
    # Embeddings of the numbers up to 999 begin as smooth functions of their values, so that near
    # coordinates and scores begin alike.
    number_features: bool = False
    # Height times width above which an image is shrunk; stored in preprocessor_config.json.
    max_pixels: _MAX_PIXELS = 512 * UNIT_PIXELS

    def check(self) -> None:
        """Sizes that fit each other, and none of the other family."""
        if self.is_qwen3 and self.vision.full_attention:
            raise ConfigError(
                "vision.full_attention is Qwen2.5-VL's; Qwen3-VL's blocks all have it"
            )
        for key in ("position_side", "deepstack"):
            if not self.is_qwen3 and getattr(self.vision, key):
                raise ConfigError(f"vision.{key} is Qwen3-VL's; set family: qwen3_vl or remove it")
        self.sizes(2048)

    @property
    def is_qwen3(self) -> bool:
        """Whether it is a Qwen3-VL."""
        return self.family == "qwen3_vl"

    @property
    def geometry(self) -> Geometry:
        """Of patches, units and windows."""
        return Geometry(patch_size=16, window_size=0) if self.is_qwen3 else Geometry()

    def sizes(self, vocab_size: int) -> QwenConfig:
        """All sizes, with a vocabulary."""
        text, vision = self.text, self.vision
        pairs = text.hidden_size // text.num_heads // 2
        # As in the released models: a quarter for time (where all take turns, what is left over),
        # the rest for height and width alike.
        sides = 2 * (pairs // 3) if self.is_qwen3 else pairs - pairs // 4
        decoder = DecoderConfig(
            vocab_size, text.hidden_size, text.mlp_size, text.num_layers, text.num_heads,
            text.num_kv_heads, head_dim=2 * pairs, rope_theta=text.rope_theta,
            qkv_bias=not self.is_qwen3, qk_norm=self.is_qwen3, tie_embeddings=True,
            mrope_section=(pairs - sides, sides - sides // 2, sides // 2),
            mrope_interleaved=self.is_qwen3,
        )  # fmt: skip
        tower = (vision.width, vision.mlp_size, vision.num_layers, vision.num_heads)
        if self.is_qwen3:
            seen: VisionConfig = Qwen3VisionConfig(
                *tower, text.hidden_size, vision.position_side or 8, vision.deepstack,
                geometry=self.geometry,
            )  # fmt: skip
        else:
            seen = QwenVisionConfig(
                *tower, text.hidden_size, vision.full_attention, geometry=self.geometry
            )
        return QwenConfig(decoder, seen)


@dataclass(frozen=True)
class JudgeShapesConfig(CheckedConfig):
    """Samples of the shapes world with the questions of the multimodal judge, answered exactly."""

    # Number of different samples, drawn and rendered whenever they are needed.
    examples: ItemCount = 1000000
    # Terms that are asked about.
    terms: tuple[FilledText, ...] = MULTIMODAL_TERMS
    # The words and sizes of the questions, as of `judge.questions`; its `layout` does not count.
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    # What spa is asked about in each sample: the sketch of the boxes, and the boxes as text.
    layouts: tuple[Literal["canvas", "text"], ...] = ("canvas", "text")
    # Names that are searched for in each sample; some are of objects that are not there.
    searches: Annotated[int, Range("[1, 64]")] = 2
    # Whether each sample is also asked for a list of all its objects with their boxes. No judge
    # asks this; it teaches to see before names have to be matched.
    inventory: bool = False
    # Share of the samples whose plan keeps to the caption; the others have a wrong color, shape,
    # size or side, an object too few or too many, or another caption's objects.
    true_plans: Fraction = 0.5
    # Share of the samples whose image keeps to the caption; the others as of true_plans.
    true_images: Fraction = 0.35
    # A checkpoint with a VQ tokenizer (a folder or hub id), through which images go before they are
    # judged, as all images of a policy have; null: none.
    vq: FilledText | None = None
    # Share of the images that go through vq.
    vq_fraction: Fraction = 0.5
    # Samples of a policy (a run, its folder of samples, what `gotr1 generate` wrote); the exact
    # judge grades them like the others.
    samples: tuple[FilledText, ...] = ()
    # Share of these samples among the examples.
    samples_fraction: Fraction = 0.25

    def check(self) -> None:
        """Something to ask about, no kind of question twice."""
        unknown = [term for term in self.terms if term not in MULTIMODAL_TERMS]
        if unknown or not self.terms or len(set(self.terms)) < len(self.terms):
            raise ConfigError(
                f"terms holds {', '.join(self.terms) or 'nothing'}; name one or more of "
                f"{', '.join(MULTIMODAL_TERMS)}, each once"
            )
        if not self.layouts or len(set(self.layouts)) < len(self.layouts):
            raise ConfigError("layouts: name canvas, text, or both")


@dataclass(frozen=True)
class JudgeDataConfig(CheckedConfig):
    """Examples of image, question and answer: of the shapes world, or your own records."""

    may_change: ClassVar[Collection[str]] = ("too_long_limit",)

    # "shapes", or records, as of `train sft`: .jsonl, .parquet and .tar files, folders of them,
    # ids of hub data sets.
    source: FilledText | tuple[FilledText, ...] = "shapes"
    records: QuestionRecordsConfig = field(default_factory=QuestionRecordsConfig)
    shapes: JudgeShapesConfig = field(default_factory=JudgeShapesConfig)
    # Tokens of a row, question and answer, its images' included; rows are padded to it, and longer
    # ones are left out.
    max_tokens: TokenCount = 192
    # Tokens of a row's answer; rows with longer answers are left out.
    max_answer_tokens: TokenCount = 64
    # A larger share of questions than this that are left out is an error.
    too_long_limit: Fraction = 0.1
    # Height times width above which an image is shrunk, where the checkpoint's bound is larger.
    max_pixels: _MAX_PIXELS = 512 * UNIT_PIXELS

    def check(self) -> None:
        """A source that names something, and room for a question."""
        if not self.source:
            raise ConfigError("source is empty; name records, or shapes")
        if self.max_answer_tokens >= self.max_tokens:
            raise ConfigError(
                f"max_answer_tokens is {self.max_answer_tokens}, max_tokens {self.max_tokens}; a "
                "row holds a question too"
            )


@dataclass(frozen=True, kw_only=True)
class JudgeSftConfig(JobConfig):
    """Supervised training of a judge: `gotr1 train judge`."""

    may_change: ClassVar[Collection[str]] = (
        "micro_batch", "remat", "export_dir", "export_dtype", "log_every",
    )  # fmt: skip

    # A Qwen2.5-VL or Qwen3-VL to start from (a folder or a hub id); null: a new one of the sizes
    # `model`.
    init: FilledText | None = None
    model: NewJudgeConfig | None = None
    # On the text model. Null: all parameters are trained, those of the tower too.
    lora: LoraConfig | None = None
    # answers: the loss is on the answers. objects: the vision tower of a new model learns to see,
    # which objects of the shapes world are where in images and sketches, without any question; a
    # second run goes on with it by `init`.
    objective: Literal["answers", "objects"] = "answers"
    # Examples per step; a sample of the shapes world is one example with all of its questions.
    batch_size: RowCount = 16
    # Examples per forward and backward pass; gradients are accumulated.
    micro_batch: RowCount = 16
    # What the backward pass recomputes: nothing, all but matrix products, or everything.
    remat: Literal["none", "dots", "full"] = "none"
    # dtype of activations.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # dtype of the trained parameters; adapters are always float32.
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    # The mean of the loss is over all tokens of answers, or over answers of any length alike.
    mean_over: Literal["tokens", "answers"] = "tokens"
    # Where the finished model is written in the released format; null: run_dir/model.
    export_dir: FilledText | None = None
    # dtype of the finished model's weights.
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    # Steps between lines of metrics.jsonl.
    log_every: Steps = 20
    data: JudgeDataConfig = field(default_factory=JudgeDataConfig)

    def check(self) -> None:
        """One start, whole micro-batches, enough examples."""
        super().check()
        if (self.init is None) == (self.model is None):
            raise ConfigError(
                "init and model exclude each other: set exactly one of init (a checkpoint) and "
                "model (sizes of a new one)"
            )
        if self.model is not None and self.lora is not None:
            raise ConfigError("lora is for init; adapters on a new model would train little of it")
        if self.lora is not None:
            self.optimizer.check_trained("adapters (lora)")
        if self.objective == "objects":
            self._check_objects()
        if self.batch_size % self.micro_batch:
            raise ConfigError(
                f"micro_batch {self.micro_batch} does not divide batch_size {self.batch_size}"
            )
        if self.data.source == "shapes" and self.batch_size > self.data.shapes.examples:
            raise ConfigError(
                f"batch_size is {self.batch_size}, data.shapes.examples is "
                f"{self.data.shapes.examples}; a batch holds each example once, so use more"
            )

    @property
    def taught_canvas(self) -> int | None:
        """Longer side in pixels of the sketches that spa's questions have; None: there are none."""
        shapes = self.data.shapes
        sketches = self.objective == "answers" and self.data.source == "shapes"
        sketches = sketches and LAYOUT_TERM in shapes.terms and "canvas" in shapes.layouts
        return shapes.questions.canvas if sketches else None

    def _check_objects(self) -> None:
        """A new model, of whose text model nothing is changed, and labelled images."""
        if self.model is None or self.data.source != "shapes":
            raise ConfigError(
                "objective: objects is for a new model (`model`) on data.source: shapes, which "
                "alone knows all objects of an image"
            )
        if self.optimizer.weight_decay:
            raise ConfigError(
                f"optimizer.weight_decay is {self.optimizer.weight_decay}; with objective: objects "
                "the text model has no gradient, and decay would only shrink it: set 0"
            )
