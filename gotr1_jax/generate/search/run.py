"""A search with a loaded generator: its judges, its draws in batches, its results written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from gotr1_jax.errors import InputError
from gotr1_jax.generate.batches import SampleTask, fill_batch, plan_width, prompt_width
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.generate.search.config import SearchJob, with_terms
from gotr1_jax.generate.search.rounds import Search, SearchJudges
from gotr1_jax.generate.write_results import GeneratedSample
from gotr1_jax.rewards.base import Judge, is_group_wise
from gotr1_jax.rewards.combine import combine
from gotr1_jax.rewards.command import JudgeJob, device_mesh
from gotr1_jax.rewards.factory import make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.tokenizers.janus import TextTokenizer

if TYPE_CHECKING:
    from gotr1_jax.generate.generator import ImageGenerator

_log = logging.getLogger(__name__)
_Drawn = TypeVar("_Drawn")


def make_judges(job: SearchJob) -> SearchJudges:
    """The judges that a search needs; InputError for what they lack."""
    search, own = job.search, job.own_terms
    config = job.judge or JudgeConfig(kind="none")
    mesh = device_mesh(JudgeJob(config, mesh=job.mesh))

    def make(names: Collection[str]) -> Judge | None:
        given = {name: term for name, term in own.items() if name in names}
        part = with_terms(config, [name for name in names if name not in own])
        return make_judge(part, mesh=mesh, terms=given) if part.scored_terms or given else None

    images = make([search.image_term]) if search.uses("repaint") else None
    plans = make(search.plan_terms) if search.uses("verify") else None
    for name, judge in (("image_term", images), ("plan_terms", plans)):
        if is_group_wise(judge):
            raise InputError(
                f"search.{name} is scored by a judge that compares the samples of a caption; only "
                "best_of can use it"
            )
    if not search.uses("best_of"):
        return SearchJudges(plans, images)
    reward = job.compared
    if job.reward is None:
        _log.info("best_of compares the mean of %s", ", ".join(reward.terms))
    return SearchJudges(
        plans, images, make(reward.expression.names),
        lambda scores: combine(scores, reward.total, reward.terms),
    )  # fmt: skip


@dataclass(frozen=True)
class GeneratorDrawing:
    """Draws by an `ImageGenerator`, any number of rows in its batches."""

    images: ImageGenerator
    max_plan_tokens: int
    plan_bucket: int

    @property
    def batch_size(self) -> int:
        """Rows of a batch."""
        return self.images.batch_size

    def draw_plans(self, rows: Sequence[SampleTask]) -> list[list[int]]:
        """See `Drawing`."""
        return self._in_batches(rows, self._plans)

    def draw_images(self, rows: Sequence[SampleTask]) -> list[tuple[list[int], np.ndarray]]:
        """See `Drawing`."""
        return self._in_batches(rows, self._images)

    def _in_batches(
        self, rows: Sequence[SampleTask], draw: Callable[[Sequence[SampleTask]], list[_Drawn]]
    ) -> list[_Drawn]:
        size = self.batch_size
        return [d for i in range(0, len(rows), size) for d in draw(rows[i : i + size])]

    def _plans(self, rows: Sequence[SampleTask]) -> list[list[int]]:
        C = prompt_width(max(len(row.prompt_ids) for row in rows))
        tokens = self.images.sample_plans(fill_batch(rows, self.batch_size, C, 0))
        lengths = tokens.plan_len_B[: len(rows)]
        return [tokens.plan_ids_BT[i, : int(n)].tolist() for i, n in enumerate(lengths)]

    def _images(self, rows: Sequence[SampleTask]) -> list[tuple[list[int], np.ndarray]]:
        assert self.images.decode is not None
        C = prompt_width(max(len(row.prompt_ids) for row in rows))
        longest = max(len(row.plan_ids) for row in rows)
        T = plan_width(longest, self.max_plan_tokens, self.plan_bucket)
        tokens = self.images.sample(fill_batch(rows, self.batch_size, C, T))
        ids_BU = np.asarray(tokens.image_ids_BU)[: len(rows)]
        pixels = self.images.decode(ids_BU)
        return [(ids.tolist(), pixels[i]) for i, ids in enumerate(ids_BU)]


def search_samples(
    config: GenerateConfig, images: ImageGenerator, judges: SearchJudges,
    tokenizer: TextTokenizer, rows: Iterable[SampleTask],
) -> Iterator[tuple[SampleTask, GeneratedSample]]:  # fmt: skip
    """The kept sample of each row; at the end a line about those that could not be verified."""
    assert config.search is not None
    longest, bucket = config.sampling.max_plan_tokens, config.sampling.plan_bucket
    drawing = GeneratorDrawing(images, longest, bucket)
    search = Search(config.search.search, drawing, tokenizer, judges, longest, config.plans_only)
    unverified, samples, failed = set[str](), 0, 0
    for row, sample in search(rows):
        yield row, sample
        assert sample.search is not None
        samples += 1
        kept = sample.search["attempts"][sample.search["chosen"]]
        if "verdicts" not in kept:
            continue
        passed = kept["verdicts"][kept["plan"]]["passed"]
        if passed is None:
            unverified.add(row.task.caption)
        failed += passed is False
    if unverified:
        shown = next(iter(sorted(unverified)))
        _log.warning(
            "plans of %d captions could not be verified and were taken as drawn, such as %r; their "
            "result.json says why", len(unverified), shown,
        )  # fmt: skip
    if failed:
        _log.info("no plan of %d of %d samples passed; the best ones were taken", failed, samples)
