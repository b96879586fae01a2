"""The configuration of a rollout: how many samples, and how they are drawn."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from gotr1_jax.config import CheckedConfig
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.decoding.config import CacheDtype
from gotr1_jax.errors import ConfigError
from gotr1_jax.limits import ROWS, Range, RowCount, Steps, Temperature, TokenCount
from gotr1_jax.sampler.config import SamplerConfig

# Fields of a rollout that a checkpoint's generation_config.json may say.
SAMPLED = ("max_plan_tokens", "guidance", "text_temperature", "image_temperature")


@dataclass(frozen=True)
class RolloutConfig(CheckedConfig):
    """Sampling of the rollout."""

    may_change: ClassVar[Collection[str]] = ("captions_at_once", "decode_batch", "overlap")

    # Captions whose samples make a step.
    captions_per_step: RowCount = 8
    # Samples (plan and image) of each caption: a group, G, within which rewards are compared.
    samples_per_caption: Annotated[
        int, Range("[2, 1048576]", why="advantages compare samples of one caption")
    ] = 16
    # Images sampled after each plan, M: samples_per_caption / M plans a caption, each sampled once;
    # its M images share its tokens and its KV cache. 1: every sample has a plan of its own.
    # Evaluations always sample so.
    images_per_plan: RowCount = 1
    # Longest plan in tokens, without BOI. Null: as policy.init's generation_config.json says, else
    # 600.
    max_plan_tokens: TokenCount | None = None
    # Weight of classifier-free guidance of the image; 1: none. Null: as policy.init's
    # generation_config.json says, else 5.
    guidance: Annotated[float, Range("[1, 1000]")] | None = None
    # Divisor of the plan's logits. Null: as policy.init's generation_config.json says, else 1.
    text_temperature: Temperature | None = None
    # Divisor of the image's logits. Null: as policy.init's generation_config.json says, else 1.
    image_temperature: Temperature | None = None
    # Captions per sampling batch, which are also decoded and judged together; fewer need less
    # memory and more time. 0: captions_per_step. In float32 it does not change the samples.
    captions_at_once: Annotated[int, Range("[0, 1048576]")] = 0
    # Rows per batch of the VQ decoder in a process, rounded up to a multiple of its devices.
    decode_batch: RowCount = 64
    # Whether judges on servers, functions of one's own and the shapes judge work in a thread of
    # their own, while the next sampling batch is drawn and log-probs are computed. No number
    # changes.
    overlap: bool = True
    # KV cache of the sampler. auto: in the dtype of the activations; int8: about half the bytes of
    # bfloat16, for more rows at once. Keys and values are then rounded, so the samples are of a
    # slightly different policy: policy/logp_diff shows how much, loss.importance corrects for it.
    cache_dtype: CacheDtype = "auto"
    # The sampler has the policy's weights of the last multiple of this many steps: 1, always the
    # newest. More draws samples of an older policy, on purpose.
    refresh_every: Steps = 1
    # 1: the samples of a step are drawn before the update of the step before, while its judge
    # answers, by a policy that is one update older; loss.importance corrects for that. 0: after it.
    async_steps: Annotated[int, Range("[0, 1]")] = 0

    @property
    def rows(self) -> int:
        """Samples of a step."""
        return self.captions_per_step * self.samples_per_caption

    @property
    def rows_at_once(self) -> int:
        """Samples per sampling batch, also in an evaluation."""
        return (self.captions_at_once or self.captions_per_step) * self.samples_per_caption

    @property
    def plans_at_once(self) -> int:
        """Plans per sampling batch."""
        return self.rows_at_once // self.images_per_plan

    @property
    def sampled(self) -> GenerationConfig:
        """What is set of how plans and images are sampled."""
        return GenerationConfig(**{name: getattr(self, name) for name in SAMPLED})

    @property
    def sampling(self) -> SamplerConfig:
        """Settings of the sampler."""
        return replace(SamplerConfig.of(self.sampled), cache_dtype=self.cache_dtype)

    @property
    def keeps_older_weights(self) -> bool:
        """Whether a state holds the weights that samples are drawn with, beside the newest."""
        return self.refresh_every > 1 or self.async_steps > 0

    def check(self) -> None:
        """Whole sampling batches, whole plans, and no more rows than memory can hold."""
        captions, at_once = self.captions_per_step, self.captions_at_once
        if at_once and captions % at_once:
            raise ConfigError(
                f"captions_at_once is {at_once}; use a divisor of captions_per_step, which is "
                f"{captions}, or 0 for all of them"
            )
        if self.samples_per_caption % self.images_per_plan:
            raise ConfigError(
                f"images_per_plan is {self.images_per_plan}; use a divisor of "
                f"samples_per_caption, which is {self.samples_per_caption}, or 1 for a plan of its "
                "own for every sample"
            )
        if self.async_steps and self.refresh_every > 1:
            raise ConfigError(
                f"async_steps is {self.async_steps} and refresh_every {self.refresh_every}, which "
                "both say how old the sampler's weights are; leave one of them out"
            )
        complaint = ROWS.complaint(self.rows)
        if complaint:
            raise ConfigError(
                f"captions_per_step x samples_per_caption is {self.rows}; {complaint}"
            )

    def check_async(self, resample_rounds: int, corrects: bool) -> None:
        """Other settings that drawing a step before the last update needs.

        corrects: whether the loss knows of importance weights. ConfigError where one is missing.
        """
        if self.async_steps and resample_rounds:
            raise ConfigError(
                f"rollout.async_steps is {self.async_steps}, so the next step is drawn before this "
                f"one's rewards are known, and update.resample_rounds is {resample_rounds}, which "
                "draws by them; set one of them to 0"
            )
        if self.async_steps and not corrects:
            raise ConfigError(
                f"rollout.async_steps is {self.async_steps}, so samples are of an older policy, "
                "and loss.importance is null; set loss.importance.kind to token_truncate, which "
                "corrects for it"
            )
