"""The one place that knows which scorers are a CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gotr1_jax.rewards.clip import ClipJudge
from gotr1_jax.rewards.clipscore import ClipScoreJudge
from gotr1_jax.rewards.hps import HpsJudge
from gotr1_jax.rewards.pickscore import PickScoreJudge
from gotr1_jax.rewards.scorer_configs import ClipScorerConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

_JUDGES: tuple[type[ClipJudge], ...] = (HpsJudge, PickScoreJudge, ClipScoreJudge)


def make_clip_judge(
    kind: str, config: ClipScorerConfig, mesh: Mesh | None = None, terms: Sequence[str] = ()
) -> ClipJudge:
    """The judge of one of `CLIP_KINDS`; it gives its score the names `terms`, if any.

    InputError for a checkpoint that cannot be read.
    """
    judge = {judge.kind: judge for judge in _JUDGES}[kind]
    return judge.from_path(
        config.checkpoint, config.vocabulary, batch_rows=config.batch_rows, mesh=mesh, terms=terms
    )
