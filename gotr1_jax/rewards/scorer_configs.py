"""Settings of scorers outside of the configured judge: CLIPs here, and reward servers. No jax."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import FilledText, Range, RowCount
from gotr1_jax.rewards.published import STAGES
from gotr1_jax.shapes.judge import SHAPES_TERMS
from gotr1_jax.vlm_engine.config import HttpServerConfig

# The scorers that are a CLIP in this process; `rewards.clip_kinds` makes them.
CLIP_KINDS = ("hps", "pickscore", "clipscore")


@dataclass(frozen=True)
class ClipScorerConfig(CheckedConfig):
    """A CLIP that scores in this process: HPS v2.1, PickScore or CLIPScore."""

    may_change: ClassVar[Collection[str]] = ("batch_rows",)

    # What the score judges, see `rewards.stages`.
    stage: ClassVar[str] = "image"

    # For hps HPS_v2.1_compressed.pt or the directory that it was converted to; for the others a
    # directory of transformers.CLIPModel or a hub id: yuvalkirstain/PickScore_v1,
    # openai/clip-vit-large-patch14.
    checkpoint: FilledText
    # File or directory of CLIP's vocabulary; null: in the checkpoint's directory.
    vocabulary: FilledText | None = None
    # Images or captions of one call.
    batch_rows: RowCount = 32


@dataclass(frozen=True)
class RewardServerConfig(HttpServerConfig):
    """A server of scores (docs/reward_server.md); `url` is the whole address of a POST."""

    may_change: ClassVar[Collection[str]] = (*HttpServerConfig.may_change, "batch_size")

    # Requests under way at once.
    concurrency: Annotated[int, Range("[1, 10000)")] = 4
    # Samples of one request; with group_wise it is one caption's samples instead.
    batch_size: RowCount = 8
    # The server's name for the score, where it gives several; empty: the term's name.
    score: str = ""
    # jpeg is smaller and not quite the image.
    image_format: Literal["png", "jpeg"] = "png"
    # The server compares the samples of a caption.
    group_wise: bool = False


@dataclass(frozen=True)
class ExactScorerConfig(CheckedConfig):
    """A score of the shapes world's exact judge, beside the judge that a run trains on."""

    # sem, spa, ri, pi or verdict.
    score: FilledText

    def check(self) -> None:
        """A score that there is."""
        if self.score not in SHAPES_TERMS:
            raise ConfigError(
                f"score is {self.score!r}, which the exact judge does not give; choose from "
                f"{', '.join(SHAPES_TERMS)}"
            )

    @property
    def stage(self) -> str:
        """What the score judges, see `rewards.stages`."""
        return STAGES[self.score]
