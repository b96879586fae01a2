"""The one place where judges are made from their settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.generation_config import read_canvas
from gotr1_jax.errors import InputError
from gotr1_jax.rewards.base import Judge, group_places
from gotr1_jax.rewards.composite import CachedJudge, CompositeJudge, SharedJudge
from gotr1_jax.rewards.judge_config import (
    ASKING_KINDS,
    KINDS,
    CacheConfig,
    JudgeConfig,
    PythonConfig,
)
from gotr1_jax.rewards.multimodal.comparison import QuestionComparer
from gotr1_jax.rewards.multimodal.questions import LAYOUT_TERM
from gotr1_jax.rewards.multimodal.terms import MultimodalJudge
from gotr1_jax.rewards.own_function import check_function
from gotr1_jax.rewards.pairwise import Comparer, PairwiseConfig, PairwiseJudge, ScoreComparer
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.scorer_configs import (
    ClipScorerConfig,
    ExactScorerConfig,
    RewardServerConfig,
)
from gotr1_jax.rewards.server import RewardServerJudge
from gotr1_jax.rewards.shapes import ShapesJudge
from gotr1_jax.rewards.soft_tifa import SoftTifaJudge, check_questions
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.shapes.judge import SHAPES_TERMS
from gotr1_jax.vlm_engine.answer_cache import AnswerCache
from gotr1_jax.vlm_engine.base import Engine

if TYPE_CHECKING:
    from jax.sharding import Mesh


SourceConfig = ClipScorerConfig | RewardServerConfig | PythonConfig | ExactScorerConfig
"""Settings of what scores a term and asks no engine."""

_log = logging.getLogger(__name__)


class JudgeMaker:
    """Makes judges that share devices, engines and kept answers.

    shapes and the CLIPs keep no answers: they are quick, and always score.
    """

    def __init__(
        self,
        mesh: Mesh | None = None,
        folder: Path | None = None,
        config: CacheConfig = CacheConfig(),  # noqa: B008 - frozen
    ) -> None:
        """
        Args:
            mesh: devices for models of this process; None: the default device.
            folder: where answers are kept unless `config` names a folder; None: they are not kept.
            config: of the kept answers.
        """
        self._mesh, self._max_bytes = mesh, config.max_bytes
        self._folder = Path(config.folder) if config.folder else folder
        self._engines = dict[object, Engine]()

    @cached_property
    def cache(self) -> AnswerCache | None:
        """Opened for the first judge whose answers are kept."""
        return None if self._folder is None else AnswerCache(self._folder, self._max_bytes)

    def engine(self, config: JudgeConfig) -> Engine:
        """The engine of a judge, one for equal models and settings; errors as of `make_engine`."""
        key = (config.kind, config.http, config.qwen_vl)
        if key not in self._engines:
            self._engines[key] = make_engine(config, self._mesh)
        return self._engines[key]

    def judge(self, config: JudgeConfig) -> Judge:
        """The judge of a configuration, without those of `also`."""
        if config.kind == "shapes":
            return ShapesJudge(config.scored_terms)
        if config.kind in ASKING_KINDS:
            cache = self.cache  # a folder that cannot be used is told before a model is read
            _warn_of_another_canvas(config)
            engine = self.engine(config)
            return MultimodalJudge(engine, config.scored_terms, config.questions, cache)
        settings = getattr(config, config.kind)
        return self.scorer(config.kind, settings, config.scored_terms, f"judge.{config.kind}")

    def scorer(
        self,
        kind: str,
        settings: SourceConfig,
        terms: Sequence[str] | Mapping[str, str],
        section: str,
    ) -> Judge:
        """A judge that asks no engine.

        Args:
            kind: a kind of judge, or the source of a term.
            settings: of that kind or source.
            terms: what its scores are called; a mapping names those of a server too.
            section: of the configuration, for messages.
        """
        if isinstance(settings, PythonConfig):
            return self._kept(PythonJudge(settings.function, list(terms), settings.group_wise))
        if isinstance(settings, ExactScorerConfig):
            return ShapesJudge(terms)
        if isinstance(settings, RewardServerConfig):
            return self._kept(RewardServerJudge(settings, terms, section))
        from gotr1_jax.rewards.clip_kinds import make_clip_judge  # with jax

        return make_clip_judge(kind, settings, self._mesh, list(terms))

    def _kept(self, judge: Judge) -> Judge:
        return judge if self.cache is None else CachedJudge(judge, self.cache)


def make_judge(
    config: JudgeConfig,
    cache_folder: Path | None = None,
    mesh: Mesh | None = None,
    terms: Mapping[str, TermConfig] | None = None,
) -> Judge:
    """The judge that a configuration describes, with all of `config.also` and of `terms`.

    Args:
        config: of the judge.
        cache_folder, mesh: as of `JudgeMaker`.
        terms: of a reward; those with a source of their own are scored by it, whatever
            else would score a term of that name.

    Raises:
        InputError: a file or function that the configuration names is not there.
    """
    maker = JudgeMaker(mesh, cache_folder, config.cache)
    own = {name: term for name, term in (terms or {}).items() if term.source != "judge"}
    parts = [part for p in (config, *config.also) if (part := _without(p, own)) is not None]
    judges = [(maker.judge(part), part.scored_terms) for part in parts]
    asked = {name: term.soft_tifa for name, term in own.items() if term.soft_tifa is not None}
    pointwise = {n: t for n, t in own.items() if t.pairwise is None and t.soft_tifa is None}
    judges += [(judge, judge.terms) for judge in _make_own(pointwise, maker)]
    for name, settings in asked.items():
        part = _asking_part(f"{name}.soft_tifa", config)
        engine = maker.engine(part)
        judge = SoftTifaJudge(name, settings, engine, part.questions, maker.cache)
        judges.append((judge, judge.terms))
    pairwise = {name: term.pairwise for name, term in own.items() if term.pairwise is not None}
    return _compare(_join(judges) if judges else None, pairwise, config, maker)


def _join(judges: Sequence[tuple[Judge, Sequence[str]]]) -> Judge:
    if len(judges) == 1 and tuple(judges[0][1]) == judges[0][0].terms:
        return judges[0][0]
    return CompositeJudge(judges)


def _compare(
    judge: Judge | None, pairwise: Mapping[str, PairwiseConfig], config: JudgeConfig,
    maker: JudgeMaker,
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
            comparer = _question_comparer(name, settings, config, maker)
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
    name: str, settings: PairwiseConfig, config: JudgeConfig, maker: JudgeMaker
) -> QuestionComparer:
    part = _asking_part(f"{name}.pairwise", config, ", or by to scores")
    cache, engine = maker.cache, maker.engine(part)
    return QuestionComparer(engine, part.questions, settings.plans, cache)


def _asking_part(term: str, config: JudgeConfig, otherwise: str = "") -> JudgeConfig:
    """The first of the configured judges that answers questions; InputError where none does."""
    for part in (config, *config.also):
        if part.kind in ASKING_KINDS:
            return part
    raise InputError(
        f"reward.terms.{term} asks questions, and the judge is {config.kind}, which answers none; "
        f"set judge.kind (or one of judge.also) to {' or '.join(ASKING_KINDS)}{otherwise}"
    )


def _without(config: JudgeConfig, own: Collection[str]) -> JudgeConfig | None:
    """A judge that leaves some terms to others; None where nothing is left of it."""
    terms = tuple(term for term in config.scored_terms if term not in own)
    if not terms:
        return None
    return config if terms == config.scored_terms else replace(config, terms=terms)


def _make_own(terms: Mapping[str, TermConfig], maker: JudgeMaker) -> list[Judge]:
    """The judges of terms with a source of their own; one for all terms of equal sources.

    A function of several terms runs once, a server of several scores is asked once, a CLIP is
    loaded once.
    """
    names = list(terms)
    return [
        make_term_judge({names[i]: terms[names[i]] for i in places}, maker)
        for places in group_places(map(_source, terms.values()))
    ]


def _source(term: TermConfig) -> tuple[str, SourceConfig]:
    """What scores a term, and its settings without which of several scores the term is."""
    if term.python is not None:
        return "python", PythonConfig(term.python)
    if term.http is not None:
        return "http", replace(term.http, score="")
    if term.shapes is not None:
        return "shapes", replace(term.shapes, score=SHAPES_TERMS[0])  # it gives all of them
    return term.source, getattr(term, term.source)


def make_term_judge(terms: Mapping[str, TermConfig], maker: JudgeMaker) -> Judge:
    """The judge of terms whose sources are equal, but for which of its scores each term is.

    InputError for a term that another judge scores, or compares the samples of a caption by.
    """
    name, term = next(iter(terms.items()))
    if term.source in ("judge", "pairwise", "soft_tifa"):
        raise InputError(
            f"{name} takes its score from the judge of a reward (or asks it, or is a win rate by "
            "it); give a source of another kind"
        )
    kind, settings = _source(term)
    names = {t: _score_name(t, other) for t, other in terms.items()}
    return maker.scorer(kind, settings, names, f"terms.{name}.{kind}")


def _score_name(name: str, term: TermConfig) -> str:
    """What a source of several scores calls the one of a term."""
    if term.shapes is not None:
        return term.shapes.score
    return (term.http.score if term.http else "") or name


def term_judge_makers(
    terms: Mapping[str, TermConfig], maker: JudgeMaker
) -> dict[str, Callable[[], Judge]]:
    """What makes the judge of each term alone, by name; see `make_term_judge`.

    Terms of the exact judge share one, which looks at the same samples once.
    """
    makers: dict[str, Callable[[], Judge]] = {
        name: partial(make_term_judge, {name: term}, maker) for name, term in terms.items()
    }
    exact = {name: term for name, term in terms.items() if term.shapes is not None}
    if exact:
        shared = SharedJudge(make_term_judge(exact, maker), len(exact))
        makers |= {name: partial(CompositeJudge, [(shared, (name,))]) for name in exact}
    return makers


def needs_devices(config: JudgeConfig, terms: Mapping[str, TermConfig] | None = None) -> bool:
    """Whether a model of the judge, or of a term with a source of its own, runs in this process."""
    kinds: list[str] = [part.kind for part in (config, *config.also)]
    kinds += [term.source for term in (terms or {}).values()]
    return any(kind in KINDS and KINDS[kind].in_process for kind in kinds)


def check_functions(config: JudgeConfig, *terms: Mapping[str, TermConfig]) -> None:
    """InputError for a function of one's own that is not there, before anything large is loaded.

    Also for questions of a term that cannot be read. Of the judge, of `config.also` and of the
    terms; see `own_function.check_function`.
    """
    functions = [
        part.python.function
        for part in (config, *config.also)
        if part.kind == "python" and part.python is not None
    ]
    functions += [term.python for section in terms for term in section.values() if term.python]
    for function in dict.fromkeys(functions):
        check_function(function)
    asked = [t.soft_tifa for section in terms for t in section.values() if t.soft_tifa is not None]
    for settings in asked:
        check_questions(settings)


def check_engine(config: JudgeConfig) -> None:
    """InputError for a kind of judge that has no engine."""
    if config.kind not in ASKING_KINDS:
        raise InputError(
            f"judge.kind is {config.kind}, which answers no questions; use "
            f"{' or '.join(ASKING_KINDS)}"
        )


def _warn_of_another_canvas(config: JudgeConfig) -> None:
    """Logs it where a judge of this process is asked with sketches unlike those it was taught."""
    asked = config.questions
    sketches = asked.layout == "canvas" and LAYOUT_TERM in config.scored_terms
    if config.kind != "qwen_vl" or not sketches:
        return
    assert config.qwen_vl is not None
    name = config.qwen_vl.checkpoint
    taught = read_canvas(find_checkpoint(name))
    if taught not in (None, asked.canvas):
        _log.warning(
            "judge.qwen_vl.checkpoint %s was taught sketches of %d pixels, and %s is asked with "
            "%d; set judge.questions.canvas=%d", name, taught, LAYOUT_TERM, asked.canvas, taught,
        )  # fmt: skip


def make_engine(config: JudgeConfig, mesh: Mesh | None = None) -> Engine:
    """The engine of a judge that answers questions; InputError for a kind that has none."""
    check_engine(config)
    if config.kind == "http":
        from gotr1_jax.vlm_engine.http import HttpEngine

        assert config.http is not None
        return HttpEngine(config.http)
    from gotr1_jax.vlm_engine.engine import QwenEngine

    assert config.qwen_vl is not None
    return QwenEngine.from_config(config.qwen_vl, mesh)
