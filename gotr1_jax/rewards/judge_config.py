"""Settings of the judge: the kinds of judges, and what each of them needs and can score."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.io.object_store import is_url
from gotr1_jax.limits import FilledText, Range
from gotr1_jax.rewards.multimodal.questions import MULTIMODAL_TERMS, QuestionsConfig
from gotr1_jax.rewards.own_function import HOW_TO_NAME, is_function_name
from gotr1_jax.rewards.published import GOTR1_TERMS
from gotr1_jax.rewards.scorer_configs import CLIP_KINDS, ClipScorerConfig, RewardServerConfig
from gotr1_jax.rewards.terms import check_names
from gotr1_jax.shapes.judge import SHAPES_TERMS
from gotr1_jax.vlm_engine.config import HttpConfig, QwenEngineConfig

JudgeKind = Literal[
    "shapes", "qwen_vl", "hps", "pickscore", "clipscore", "http", "reward_server", "python",
    "none",
]  # fmt: skip


@dataclass(frozen=True)
class KindOfJudge:
    """What is known of a kind of judge before one is made.

    Attributes:
        terms: those that it can score; None: whatever names the configuration gives.
        needs: settings that it cannot do without, for messages; empty: none.
        asks: whether it asks questions, which an engine answers.
        in_process: whether a model runs in this process.
    """

    terms: tuple[str, ...] | None = None
    needs: str = ""
    asks: bool = False
    in_process: bool = False


KINDS: Mapping[str, KindOfJudge] = {
    "shapes": KindOfJudge(SHAPES_TERMS),
    "qwen_vl": KindOfJudge(
        MULTIMODAL_TERMS, "judge.qwen_vl.checkpoint", asks=True, in_process=True
    ),
    "http": KindOfJudge(MULTIMODAL_TERMS, "judge.http.url and judge.http.model", asks=True),
    **{
        kind: KindOfJudge((kind,), f"judge.{kind}.checkpoint", in_process=True)
        for kind in CLIP_KINDS
    },
    "reward_server": KindOfJudge(
        needs="judge.reward_server.url, judge.reward_server.model and judge.terms"
    ),
    "python": KindOfJudge(needs="judge.python.function and judge.terms"),
    "none": KindOfJudge(()),
}
ASKING_KINDS = tuple(name for name, kind in KINDS.items() if kind.asks)


@dataclass(frozen=True)
class PythonConfig(CheckedConfig):
    """A function of one's own; see `rewards.python`."""

    # file.py:function, or module:function; the working directory is searched too.
    function: FilledText
    # Whether it compares the samples of a caption: then all those of a step are in one batch. A
    # function with an attribute group_wise = True needs no setting.
    group_wise: bool = False

    def check(self) -> None:
        """A function's name."""
        if not is_function_name(self.function):
            raise ConfigError(
                f"function is {self.function!r}, which names no function; {HOW_TO_NAME}"
            )


@dataclass(frozen=True)
class CacheConfig(CheckedConfig):
    """Answers kept on disk, so that a resumed step does not ask twice."""

    # Folder; empty: the folder that the command chooses, or no cache.
    folder: str = ""
    # Bytes at which a new file is begun; the disk holds two files.
    max_bytes: Annotated[int, Range("[1, 1e15]")] = 64 * 2**20

    def check(self) -> None:
        """Answers are appended one by one, which no bucket does."""
        if is_url(self.folder):
            raise ConfigError(
                f"folder is {self.folder}; it must be a folder, not a URL. Of a run in a bucket "
                "leave it empty: the answers are kept there with the run"
            )


@dataclass(frozen=True)
class JudgeConfig(CheckedConfig):
    """The judge; a section is used only by the kinds that are named with it."""

    may_change: ClassVar[Collection[str]] = ("cache",)

    renamed_keys: ClassVar[Mapping[str, str]] = {"qwen2_5_vl": "qwen_vl"}
    renamed_values: ClassVar[Mapping[str, Mapping[str, str]]] = {"kind": {"qwen2_5_vl": "qwen_vl"}}

    # shapes: the shapes world's exact judge; qwen_vl: Qwen2.5-VL or Qwen3-VL in this process; hps,
    # pickscore: human preference; clipscore: how well caption and image fit; http: a model behind
    # an OpenAI-compatible server; reward_server: any scorer behind HTTP; python: a function of
    # one's own; none: no judge, where every term of the reward has a source of its own.
    kind: JudgeKind = "shapes"
    # Terms that are taken from this judge. Empty: from hps, pickscore and clipscore the one of
    # that name; from shapes, http and qwen_vl sem, spa, ri and pi; python and reward_server
    # must name their own.
    terms: tuple[str, ...] = ()
    # For http and qwen_vl.
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    # For the kind http only.
    http: HttpConfig | None = None
    # For the kind qwen_vl only.
    qwen_vl: QwenEngineConfig | None = None
    # For the kind hps only.
    hps: ClipScorerConfig | None = None
    # For the kind pickscore only.
    pickscore: ClipScorerConfig | None = None
    # For the kind clipscore only.
    clipscore: ClipScorerConfig | None = None
    # For the kind reward_server only.
    reward_server: RewardServerConfig | None = None
    # For the kind python only.
    python: PythonConfig | None = None
    cache: CacheConfig = field(default_factory=CacheConfig)
    # Further judges, each for terms of its own; they share the cache.
    also: tuple[JudgeConfig, ...] = ()

    def check(self) -> None:
        """Terms that the kind can score, each from one judge, and its settings."""
        try:
            check_names(self.terms)
        except ConfigError as error:
            raise ConfigError(f"terms holds {error}") from error
        kind = KINDS[self.kind]
        unknown = [] if kind.terms is None else [t for t in self.terms if t not in kind.terms]
        if unknown:
            raise ConfigError(
                f"terms holds {unknown[0]!r}, which the kind {self.kind} does not score; "
                f"choose from {', '.join(kind.terms or ()) or 'nothing'}"
            )
        missing = kind.needs and getattr(self, self.kind) is None
        if missing or (kind.terms is None and not self.terms):
            raise ConfigError(f"kind is {self.kind}; give {kind.needs}")
        if self.reward_server and self.reward_server.score and len(self.terms) > 1:
            raise ConfigError(
                f"reward_server.score names one score, and terms holds {len(self.terms)}; leave it "
                "out: the server then gives each term by its name"
            )
        if any(other.also or other.cache != CacheConfig() for other in self.also):
            raise ConfigError("also holds judges without a cache or an also of their own")
        names = [name for part in (self, *self.also) for name in part.scored_terms]
        double = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if double:
            raise ConfigError(
                f"also gives {', '.join(double)} a second time; set terms of judge and judge.also "
                "so that each is given once"
            )

    @property
    def scored_terms(self) -> tuple[str, ...]:
        """The terms that are taken from this judge, without those of `also`."""
        known = KINDS[self.kind].terms or ()
        usual = tuple(term for term in GOTR1_TERMS if term in known)
        return self.terms or usual or known

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint of a model in this process; None of other kinds. Without those of
        `also`."""
        return getattr(self, self.kind).checkpoint if KINDS[self.kind].in_process else None
