"""Configuration of `gotr1 generate --search`: its sections search, judge, reward and mesh."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from gotr1_jax.config import CheckedConfig, load_config
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.grpo.config import RewardConfig
from gotr1_jax.limits import FilledText, Fraction, Range
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.rewards.command import add_field_options, option_names
from gotr1_jax.rewards.judge_config import CacheConfig, JudgeConfig
from gotr1_jax.rewards.terms import TermConfig, as_terms

Method = Literal["verify", "repair", "repaint", "best_of"]
METHODS: tuple[Method, ...] = ("verify", "repair", "repaint", "best_of")
"""In the order in which they act on a sample."""

_TOTAL = "reward.total"
Draws = Annotated[int, Range("[1, 1024]")]
Score = Annotated[float, Range("(-inf, inf)")]


@dataclass(frozen=True)
class SearchConfig(CheckedConfig):
    """What is searched, and how many draws it may cost."""

    # verify: draws plans until one has the caption's objects and relations; repair: moves its
    # boxes until the relations hold; repaint: draws images of that plan until one passes;
    # best_of: does all of this several times and keeps the best total. They act in this order.
    methods: tuple[Method, ...] = ("verify", "repair")
    # verify: the most plans of an attempt.
    plans: Draws = 5
    # repair: distance of the centres along the relation's axis that is aimed for, as a fraction of
    # the image (0.2 in arXiv 2608.21713); 0: only what the relation needs, and plans that are
    # right stay as they are.
    margin: Fraction = 0.0
    # repaint: the most images of a plan.
    images: Draws = 4
    # repaint: the judge's term that compares an image with its plan.
    image_term: FilledText = "ri"
    # repaint: the score of image_term that passes.
    image_score: Score = 0.7
    # best_of: attempts of each sample.
    samples: Draws = 4
    # verify, of captions whose relations the rules do not understand: the judge's terms about a
    # plan.
    plan_terms: tuple[FilledText, ...] = ("sem", "spa")
    # verify: the score that all of plan_terms must reach.
    plan_score: Score = 0.7

    def check(self) -> None:
        """At least one method, each once."""
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"methods must be one or more of {', '.join(METHODS)}, each once")

    def uses(self, method: Method) -> bool:
        """Whether a method is on."""
        return method in self.methods

    @property
    def most_plans(self) -> int:
        """Plans of an attempt, at most."""
        return self.plans if self.uses("verify") else 1

    @property
    def most_images(self) -> int:
        """Images of an attempt, at most."""
        return self.images if self.uses("repaint") else 1

    @property
    def attempts(self) -> int:
        """Attempts of a sample."""
        return self.samples if self.uses("best_of") else 1


@dataclass(frozen=True)
class SearchJob(CheckedConfig):
    """A search with the judge that it asks, and the devices of a model that judges here."""

    search: SearchConfig = field(default_factory=SearchConfig)
    # Null: plans are verified by rules alone; repaint and best_of need one, or terms of `reward`.
    judge: JudgeConfig | None = None
    # Of best_of: terms of one's own, and the total that is compared, as in training. Null: the
    # mean of the judge's terms.
    reward: RewardConfig | None = None
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def check(self) -> None:
        """What a method needs is scored."""
        known = self.known_terms
        needing = [name for name in ("repaint", "best_of") if self.search.uses(name)]
        if needing and not known:
            raise ConfigError(
                f"search.methods holds {needing[0]}, which needs a judge: give --judge.kind "
                "(shapes for the shapes world), or a section judge in --config"
            )
        wanted = {"search.image_term": [self.search.image_term]} if "repaint" in needing else {}
        if "best_of" in needing:
            wanted["reward.total"] = list(self.compared.expression.names)
        for where, names in wanted.items():
            if missing := [name for name in names if name not in known]:
                raise ConfigError(
                    f"{where} names {missing[0]!r}, which nothing scores; choose from "
                    f"{', '.join(known)}, or configure a judge for it"
                )

    @property
    def compared(self) -> RewardConfig:
        """What best_of compares."""
        return self.reward or RewardConfig(terms=as_terms(self.known_terms), total="sum")

    @property
    def own_terms(self) -> dict[str, TermConfig]:
        """Terms of the reward with a source of their own."""
        terms = {} if self.reward is None else self.reward.terms
        return {name: term for name, term in terms.items() if term.source != "judge"}

    @property
    def known_terms(self) -> tuple[str, ...]:
        """All terms of the judge, its `also`, and the reward."""
        parts = () if self.judge is None else (self.judge, *self.judge.also)
        judged = [name for part in parts for name in part.scored_terms]
        return tuple(dict.fromkeys([*judged, *self.own_terms]))


def with_terms(config: JudgeConfig, terms: Collection[str]) -> JudgeConfig:
    """The parts of a judge that score some of `terms`, restricted to them; of kind none: no part.

    A function of one's own keeps all of its terms: it returns them together, and one that
    returns single numbers for several terms is refused.
    """
    parts = []
    for part in (config, *config.also):
        kept = tuple(name for name in part.scored_terms if name in terms)
        if kept:
            own = part.scored_terms if part.kind == "python" else kept
            parts.append(replace(part, terms=own, also=(), cache=CacheConfig()))
    if not parts:
        return JudgeConfig(kind="none")
    return replace(parts[0], cache=config.cache, also=tuple(parts[1:]))


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """--search, --config, and an option for each field of `SearchJob`."""
    parser.add_argument(
        "--search", nargs="*", choices=METHODS, metavar="METHOD",
        help="search at test time: verify and repair plans, repaint images, best_of several; "
        "one or more (verify repair); docs/search.md",
    )  # fmt: skip
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="for --search: YAML file with sections search, judge, reward and mesh; the options "
        "below override it",
    )  # fmt: skip
    group = parser.add_argument_group("the search, its judge and their devices, lists as a,b")
    add_field_options(group, SearchJob, _option_names())


def _option_names() -> list[str]:
    """The dotted fields that are options: not the methods, and of the reward the total alone."""
    names = option_names(SearchJob)
    return [n for n in names if n != "search.methods" and (n == _TOTAL or n[:7] != "reward.")]


def read_search_options(options: argparse.Namespace) -> SearchJob | None:
    """The search of the parsed options; None without --search.

    InputError for values that cannot be used, and for options of a search without --search.
    """
    given = [name for name in _option_names() if getattr(options, name) is not None]
    if options.search is None:
        if given or options.config is not None:
            first = "config" if options.config is not None else given[0]
            raise InputError(f"--{first} is for a search: give --search as well")
        return None
    words = [f"--{name}={getattr(options, name)}" for name in given]
    if options.search:
        words.insert(0, f"--search.methods=[{', '.join(options.search)}]")
    return load_config(SearchJob, options.config, words)
