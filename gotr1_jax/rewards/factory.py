"""Choosing a judge: its settings, and the one place where judges are made from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.limits import FilledText, Range
from gotr1_jax.rewards.base import Judge
from gotr1_jax.rewards.composite import CachedJudge, CompositeJudge, SharedJudge
from gotr1_jax.rewards.multimodal.comparison import QuestionComparer
from gotr1_jax.rewards.multimodal.terms import MULTIMODAL_TERMS, MultimodalJudge, QuestionsConfig
from gotr1_jax.rewards.pairwise import Comparer, PairwiseConfig, PairwiseJudge, ScoreComparer
from gotr1_jax.rewards.published import GOTR1_TERMS
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.scorer_configs import CLIP_KINDS, ClipScorerConfig, RewardServerConfig
from gotr1_jax.rewards.server import RewardServerJudge
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.rewards.terms import TermConfig, check_names
from gotr1_jax.shapes.judge import SHAPES_TERMS
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine
from gotr1_jax.vlm_engine.config import HttpConfig, QwenEngineConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

ENGINE_KINDS = ("http", "qwen2_5_vl")  # they answer questions
JudgeKind = Literal[
    "shapes", "qwen2_5_vl", "hps", "pickscore", "clipscore", "http", "reward_server", "python",
    "none",
]  # fmt: skip
# What a kind can score; of the kinds with any names it is those that the configuration gives.
_CAN_SCORE: Mapping[str, tuple[str, ...]] = {
    "shapes": SHAPES_TERMS,
    **{kind: (kind,) for kind in CLIP_KINDS},
    "qwen2_5_vl": MULTIMODAL_TERMS,
    "http": MULTIMODAL_TERMS,
    "none": (),
}
# The settings that a kind cannot do without.
_REQUIRED = {
    "http": "judge.http.url and judge.http.model",
    "qwen2_5_vl": "judge.qwen2_5_vl.checkpoint",
    **{kind: f"judge.{kind}.checkpoint" for kind in CLIP_KINDS},
    "reward_server": "judge.reward_server.url, judge.reward_server.model and judge.terms",
    "python": "judge.python.function and judge.terms",
}
_ANY_NAMES = ("python", "reward_server")
# Kinds, and sources of terms, that are quick and always score: no cache keeps their results.
_NOT_KEPT = ("shapes", *CLIP_KINDS)


@dataclass(frozen=True)
class PythonConfig(CheckedConfig):
    """A function of one's own; see `rewards.python`."""

    # file.py:function, or module:function; the working directory is searched too.
    function: FilledText
    # Whether it compares the samples of a caption: then all those of a step are in one batch. A
    # function with an attribute group_wise = True needs no setting.
    group_wise: bool = False


@dataclass(frozen=True)
class CacheConfig(CheckedConfig):
    """Answers kept on disk, so that a resumed step does not ask twice."""

    # Folder; empty: the folder that the command chooses, or no cache.
    folder: str = ""
    # Bytes at which a new file is begun; the disk holds two files.
    max_bytes: Annotated[int, Range("[1, 1e15]")] = 64 * 2**20


@dataclass(frozen=True)
class JudgeConfig(CheckedConfig):
    """The judge; a section is used only by the kinds that its comment names."""

    may_change: ClassVar[Collection[str]] = ("cache",)

    # shapes: the shapes world's exact judge; qwen2_5_vl: Qwen2.5-VL in this process; hps,
    # pickscore: human preference; clipscore: how well caption and image fit; http: a model behind
    # an OpenAI-compatible server; reward_server: any scorer behind HTTP; python: a function of
    # one's own; none: no judge, where every term of the reward has a source of its own.
    kind: JudgeKind = "shapes"
    # Terms that are taken from this judge. Empty: from hps, pickscore and clipscore the one of
    # that name; from shapes, http and qwen2_5_vl sem, spa, ri and pi; python and reward_server
    # must name their own.
    terms: tuple[str, ...] = ()
    # For http and qwen2_5_vl.
    questions: QuestionsConfig = field(default_factory=QuestionsConfig)
    # For the kind http only.
    http: HttpConfig | None = None
    # For the kind qwen2_5_vl only.
    qwen2_5_vl: QwenEngineConfig | None = None
    # For the kind of that name only.
    hps: ClipScorerConfig | None = None
    pickscore: ClipScorerConfig | None = None
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
        for term in self.terms:
            if self.kind not in _ANY_NAMES and term not in _CAN_SCORE[self.kind]:
                raise ConfigError(
                    f"terms holds {term!r}, which the kind {self.kind} does not score; "
                    f"choose from {', '.join(_CAN_SCORE[self.kind]) or 'nothing'}"
                )
        missing = self.kind in _REQUIRED and getattr(self, self.kind) is None
        if missing or (self.kind in _ANY_NAMES and not self.terms):
            raise ConfigError(f"kind is {self.kind}; give {_REQUIRED[self.kind]}")
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
        usual = [term for term in GOTR1_TERMS if term in _CAN_SCORE.get(self.kind, ())]
        return self.terms or tuple(usual) or _CAN_SCORE.get(self.kind, ())


def make_judge(
    config: JudgeConfig,
    cache_folder: Path | None = None,
    mesh: Mesh | None = None,
    terms: Mapping[str, TermConfig] | None = None,
) -> Judge:
    """The judge that a configuration describes, with all of `config.also` and of `terms`.

    Args:
        config: of the judge.
        cache_folder: where answers are kept unless the configuration names a folder; None: they
            are not kept. shapes and the CLIPs keep none: they are quick, and always score.
        mesh: devices for models of this process; None: the default device.
        terms: of a reward; those with a source of their own are scored by it, whatever
            else would score a term of that name.

    Raises:
        InputError: a file or function that the configuration names is not there.
    """
    folder = Path(config.cache.folder) if config.cache.folder else cache_folder
    own = {name: term for name, term in (terms or {}).items() if term.source != "judge"}
    parts = [part for p in (config, *config.also) if (part := _without(p, own)) is not None]
    kept = [part.kind not in _NOT_KEPT for part in parts]
    kept += [
        _asks(term) if term.pairwise else term.source not in _NOT_KEPT for term in own.values()
    ]
    cache = None
    if folder is not None and any(kept):
        cache = AnswerCache(folder, config.cache.max_bytes)
    engines = Engines(mesh)
    judges = [(_make_one(part, cache, mesh, engines), part.scored_terms) for part in parts]
    pointwise = {name: term for name, term in own.items() if term.pairwise is None}
    judges += [(judge, judge.terms) for judge in _make_own(pointwise, cache, mesh)]
    pairwise = {name: term.pairwise for name, term in own.items() if term.pairwise is not None}
    return _compare(_join(judges) if judges else None, pairwise, config, cache, engines)


def _join(judges: Sequence[tuple[Judge, Sequence[str]]]) -> Judge:
    if len(judges) == 1 and tuple(judges[0][1]) == judges[0][0].terms:
        return judges[0][0]
    return CompositeJudge(judges)


def _compare(
    judge: Judge | None, pairwise: Mapping[str, PairwiseConfig], config: JudgeConfig,
    cache: AnswerCache | None, engines: Engines,
) -> Judge:  # fmt: skip
    """A judge together with win rates, some of them by its own scores."""
    if not pairwise and judge is not None:
        return judge
    uses = 1 + sum(settings.by == "scores" for settings in pairwise.values())
    if judge is not None and uses > 1:
        judge = SharedJudge(judge, uses)
    judges = [] if judge is None else [(judge, judge.terms)]
    for name, settings in pairwise.items():
        comparer: Comparer
        if settings.by == "questions":
            comparer = _question_comparer(name, settings, config, cache, engines)
        elif judge is None:
            raise InputError(
                f"reward.terms.{name}.pairwise compares {settings.of!r}, and no judge gives "
                "other terms; set judge.kind"
            )
        else:
            try:
                comparer = ScoreComparer(judge, settings.of)
            except InputError as error:
                raise InputError(f"reward.terms.{name}.pairwise.{error}") from error
        judges.append((PairwiseJudge(name, comparer, settings.opponents), (name,)))
    return _join(judges)


def _question_comparer(
    name: str, settings: PairwiseConfig, config: JudgeConfig, cache: AnswerCache | None,
    engines: Engines,
) -> QuestionComparer:  # fmt: skip
    for part in (config, *config.also):
        if part.kind in ENGINE_KINDS:
            return QuestionComparer(engines.of(part), part.questions, settings.plans, cache)
    raise InputError(
        f"reward.terms.{name}.pairwise asks questions, and the judge is {config.kind}, which "
        "answers none; set judge.kind (or one of judge.also) to http or qwen2_5_vl, or by to scores"
    )


def _asks(term: TermConfig) -> bool:
    return term.pairwise is not None and term.pairwise.by == "questions"


class Engines:
    """One engine for all judges whose model and settings are equal."""

    def __init__(self, mesh: Mesh | None) -> None:
        self._mesh, self._made = mesh, list[tuple[object, Engine]]()

    def of(self, config: JudgeConfig) -> Engine:
        """The engine of a judge; InputError as of `make_engine`."""
        key = (config.kind, config.http, config.qwen2_5_vl)
        for other, engine in self._made:
            if other == key:
                return engine
        self._made.append((key, make_engine(config, self._mesh)))
        return self._made[-1][1]


def _without(config: JudgeConfig, own: Collection[str]) -> JudgeConfig | None:
    """A judge that leaves some terms to others; None where nothing is left of it."""
    terms = tuple(term for term in config.scored_terms if term not in own)
    if not terms:
        return None
    return config if terms == config.scored_terms else replace(config, terms=terms)


def _make_own(
    terms: Mapping[str, TermConfig], cache: AnswerCache | None, mesh: Mesh | None
) -> list[Judge]:
    """The judges of terms with a source of their own.

    A function of several terms runs once; a server of several scores, by the terms' own names, is
    asked once.
    """
    sources = {
        name: term.python or (term.http if term.http and not term.http.score else name)
        for name, term in terms.items()
    }
    judges: list[Judge] = []
    for name, term in terms.items():
        names = [other for other, source in sources.items() if source == sources[name]]
        if name == names[0]:
            judges.append(make_term_judge(names, term, cache, mesh))
    return judges


def make_term_judge(
    names: Sequence[str],
    term: TermConfig,
    cache: AnswerCache | None = None,
    mesh: Mesh | None = None,
) -> Judge:
    """The judge of a term with a source of its own, which gives it the name `names[0]`.

    Only a function of one's own and a server may give several names.
    """
    if term.python is not None:
        return _kept(PythonJudge(term.python, names), cache)
    if term.http is not None:
        return _kept(RewardServerJudge(term.http, names, f"terms.{names[0]}.http"), cache)
    if term.source in CLIP_KINDS:
        return _make_clip(term.source, getattr(term, term.source), mesh, names[0])
    if term.pairwise is not None:
        raise InputError(
            "a win rate compares samples by the judge of a reward, and has the mean 0.5 whatever "
            "the policy; watch a term with a source of another kind"
        )
    # A source of another kind (a field of `TermConfig`) is made here.
    raise InputError(f"reward.terms.{names[0]} has no source of its own; give one")


def _kept(judge: Judge, cache: AnswerCache | None) -> Judge:
    return judge if cache is None else CachedJudge(judge, cache)


def _make_clip(kind: str, config: ClipScorerConfig, mesh: Mesh | None, term: str = "") -> Judge:
    from gotr1_jax.rewards.clip_kinds import make_clip_judge  # with jax

    return make_clip_judge(kind, config, mesh, term)


def _make_one(
    config: JudgeConfig, cache: AnswerCache | None, mesh: Mesh | None, engines: Engines
) -> Judge:
    if config.kind == "shapes":
        return ShapesJudge(config.scored_terms)
    if config.kind in CLIP_KINDS:
        return _make_clip(config.kind, getattr(config, config.kind), mesh)
    if config.kind == "reward_server":
        assert config.reward_server is not None
        return _kept(RewardServerJudge(config.reward_server, config.terms), cache)
    if config.kind == "python":
        assert config.python is not None
        python = config.python
        return _kept(PythonJudge(python.function, config.terms, python.group_wise), cache)
    return MultimodalJudge(engines.of(config), config.scored_terms, config.questions, cache)


def needs_devices(config: JudgeConfig, terms: Mapping[str, TermConfig] | None = None) -> bool:
    """Whether a model of the judge, or of a term with a source of its own, runs in this process."""
    sources: list[str] = [part.kind for part in (config, *config.also)]
    sources += [term.source for term in (terms or {}).values()]
    return any(source in ("qwen2_5_vl", *CLIP_KINDS) for source in sources)


def check_engine(config: JudgeConfig) -> None:
    """InputError for a kind of judge that has no engine."""
    if config.kind not in ENGINE_KINDS:
        raise InputError(
            f"judge.kind is {config.kind}, which answers no questions; use http or qwen2_5_vl"
        )


def make_engine(config: JudgeConfig, mesh: Mesh | None = None) -> Engine:
    """The engine of a judge that answers questions; InputError for a kind that has none."""
    check_engine(config)
    if config.kind == "http":
        from gotr1_jax.vlm_engine.http import HttpEngine

        assert config.http is not None
        return HttpEngine(config.http)
    from gotr1_jax.vlm_engine.engine import QwenEngine

    assert config.qwen2_5_vl is not None
    return QwenEngine.from_config(config.qwen2_5_vl, mesh)
