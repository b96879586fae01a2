"""Plans, images and answers of a checkpoint, from Python.

from gotr1_jax import Box, Pipeline

pipe = Pipeline.from_pretrained("embedded")
out = pipe("a red circle left of a blue square", n=4, seed=0)
out.images[0].save("first.png")
edited = pipe.paint(out.prompts[0], out.plans[0].replace_box(1, Box(600, 350, 999, 900)))
answer = pipe.describe(out.images[0], "What is left of the square?")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import numpy as np
from PIL import Image

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.generation_config import GenerationConfig, read_generation_config
from gotr1_jax.errors import InputError
from gotr1_jax.generate.batches import SampleTask, batch_sizes, encode_samples, make_batches
from gotr1_jax.generate.config import BUILT_IN, read_template
from gotr1_jax.generate.tasks import CaptionTask, caption_tasks, read_plan
from gotr1_jax.images import open_image
from gotr1_jax.plan import Plan
from gotr1_jax.sampler.config import AnswerConfig, SamplerConfig

if TYPE_CHECKING:
    import jax

    from gotr1_jax.generate.runner import ModelRunner
    from gotr1_jax.rewards.base import Judge, JudgeResult
    from gotr1_jax.sampler.sampler import Rollout

ImageLike = Image.Image | np.ndarray | str | Path


class SamplingOptions(TypedDict, total=False):
    """How plans and images are sampled, where a call says it; else as the checkpoint wants.

    Attributes:
      guidance: w in uncond + w (cond - uncond) for the image; 1: no guidance.
      temperature: divisor of the logits of plan and image.
      image_temperature: of the image alone.
      top_k, top_p, greedy: of plan and image.
      max_plan_tokens: longest plan, without BOI.
      template: a name, a file, or a text with {caption}.
    """

    guidance: float
    temperature: float
    image_temperature: float
    top_k: int
    top_p: float
    greedy: bool
    max_plan_tokens: int
    template: str


@dataclass(frozen=True)
class PipelineOutput:
    """Samples: those of the first prompt, then those of the next one.

    Attributes:
      prompts: the prompt of each sample.
      plans: parsed; `str(plan)` is the text.
      plan_ids: tokens of each plan, BOI last.
      images: RGB; empty if only plans were drawn.
      image_ids: image tokens of each, row-major; empty if only plans were drawn.
      plan_logps, image_logps: float32 log-probabilities of those tokens under the temperatures, in
        the image under guidance too; before top-k and top-p. 0 for tokens that were given.
      results: of the judge, for each sample; empty without one.
    """

    prompts: list[str]
    plans: list[Plan]
    plan_ids: list[list[int]]
    images: list[Image.Image]
    image_ids: list[list[int]]
    plan_logps: list[np.ndarray]
    image_logps: list[np.ndarray]
    results: list[JudgeResult] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.plans)

    @property
    def scores(self) -> list[dict[str, float]]:
        """The judge's scores of each sample, by term; NaN: could not be scored."""
        return [dict(result.scores) for result in self.results]


class Pipeline:
    """A loaded checkpoint; see the module. Compiled programs are kept from call to call.

    A sample depends on the seed, the place of its prompt among the prompts of a call, and its
    number, not on batches and devices. `gotr1 generate` with the same seed gives the same tokens.

    Attributes:
      runner: weights and programs.
      generation_config: how is sampled where a call does not say it.
      batch_size: most rows drawn at once; None: by the free memory.
    """

    def __init__(self, runner: ModelRunner, batch_size: int | None = None) -> None:
        """InputError where the checkpoint's `generation_config.json` cannot be meant."""
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; give 1 or more")
        self.runner, self.batch_size = runner, batch_size
        self.generation_config = read_generation_config(runner.source).or_else(BUILT_IN)

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path = "embedded", *, revision: str | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        devices: Sequence[jax.Device] | None = None, batch_size: int | None = None,
    ) -> Pipeline:  # fmt: skip
        """The checkpoint that is named. Weights are read when they are first needed.

        Args:
          checkpoint: "embedded", a directory, the directory of a finished run, or an id of the
            Hugging Face hub.
          revision: branch, tag or commit of a hub id.
          dtype: of weights and activations; None: bfloat16, on a CPU float32.
          devices: to work on; None: all.
          batch_size: most rows drawn at once; None: by the free memory.

        Raises InputError for a name without a checkpoint.
        """
        from gotr1_jax.generate.runner import ModelRunner
        from gotr1_jax.parallel.startup import default_dtype

        if dtype not in (None, "float32", "bfloat16"):
            raise InputError(f"dtype is {dtype!r}; choose float32 or bfloat16")
        source = find_checkpoint(checkpoint, revision)
        return cls(ModelRunner(source, dtype or default_dtype(), devices), batch_size)

    def __call__(
        self, prompt: str | Sequence[str], n: int = 1, seed: int = 0, *,
        judge: Judge | str | None = None, **sampling: Unpack[SamplingOptions],
    ) -> PipelineOutput:  # fmt: skip
        """Draws plans and images.

        Args:
          prompt: one caption or more.
          n: samples of each.
          seed: of all randomness.
          judge: scores the samples: a judge, "shapes" (the exact judge of the shapes world), or a
            function as "file.py:name".
          sampling: see `SamplingOptions`.

        Raises InputError for an empty or too long caption and for settings that cannot be meant.
        """
        return self._judged(self._draw(_as_tasks(prompt, n, None), seed, sampling), n, judge)

    def plan(
        self, prompt: str | Sequence[str], n: int = 1, seed: int = 0,
        **sampling: Unpack[SamplingOptions],
    ) -> PipelineOutput:  # fmt: skip
        """Draws plans without images: those that a call with the same seed paints."""
        return self._draw(_as_tasks(prompt, n, None), seed, sampling, with_images=False)

    def paint(
        self, prompt: str | Sequence[str], plan: Plan | str | Sequence[Plan | str], n: int = 1,
        seed: int = 0, *, judge: Judge | str | None = None, **sampling: Unpack[SamplingOptions],
    ) -> PipelineOutput:  # fmt: skip
        """Draws images of given plans.

        Args:
          prompt: one caption or more.
          plan: one for each caption.
          n: images of each plan.
          seed: of all randomness.
          judge: scores the images, as in a call.
          sampling: see `SamplingOptions`.

        Raises InputError for a plan that is too long, and if captions and plans differ in number.
        """
        plans = [plan] if isinstance(plan, Plan | str) else list(plan)
        return self._judged(self._draw(_as_tasks(prompt, n, plans), seed, sampling), n, judge)

    def describe(
        self, image: ImageLike | list[ImageLike], question: str, *, system: str = "",
        max_tokens: int = 512, temperature: float = 0.0, seed: int = 0,
    ) -> str:  # fmt: skip
        """The answer to a question about one image or more, in their order.

        Args:
          image: PIL image, uint8 (H, W, 3), or file.
          question: what to ask.
          system: text before the conversation; Janus's demo has one.
          max_tokens: a longer answer is cut.
          temperature: 0: always the most likely token.
          seed: of sampling at a temperature above 0.
        """
        from gotr1_jax.generate.answer_questions import QuestionAnswerer

        several = image if isinstance(image, list | tuple) else [image]
        images = [_as_image(part) for part in several]
        if not images:
            raise InputError("there is no image to ask about; give one or more")
        config = AnswerConfig(max_tokens, temperature)
        answerer = QuestionAnswerer(self.runner, config, system)
        ids = answerer.prompt_ids(question, len(images))
        (answer,) = answerer([ids], images, seed=seed)
        return answer.text

    def save_pretrained(
        self, folder: str | Path, dtype: Literal["float32", "bfloat16"] | None = None
    ) -> None:
        """Writes the checkpoint in the released format, as `gotr1 convert` does.

        dtype: of the written weights; None: each as it is stored.
        """
        from gotr1_jax.convert.command import check_dtype, check_target
        from gotr1_jax.convert.open_checkpoint import open_checkpoint
        from gotr1_jax.convert.translate import translate_checkpoint

        check_dtype(dtype)
        check_target(Path(folder), self.runner.source)
        translate_checkpoint(
            Path(folder), open_checkpoint(self.runner.source), "original", dtype=dtype
        )

    def _draw(
        self, tasks: list[CaptionTask], seed: int, options: SamplingOptions,
        with_images: bool = True,
    ) -> PipelineOutput:  # fmt: skip
        settings = self._settings(options)
        sampling, tokenizer = settings.sampling, self.runner.tokenizer
        rows = list(encode_samples(tasks, tokenizer, settings))
        drawn = dict[tuple[int, int], _Drawn]()
        for batch_rows, rollout in self._rollouts(rows, sampling, seed, with_images):
            ids_BU = np.asarray(rollout.rows.image_ids_BU)[: len(batch_rows)]
            pixels = self.runner.decode(ids_BU) if with_images else []
            for i, row in enumerate(batch_rows):
                length = int(rollout.rows.plan_len_B[i])
                drawn[row.task.index, row.index] = _Drawn(
                    rollout.rows.plan_ids_BT[i, :length].tolist(), ids_BU[i].tolist(),
                    Image.fromarray(pixels[i]) if with_images else None,
                    np.asarray(rollout.plan_logp_BT[i, :length]),
                    np.asarray(rollout.image_logp_BU[i]),
                )  # fmt: skip
        ordered = [drawn[row.task.index, row.index] for row in rows]
        painted = [one for one in ordered if one.image is not None]
        return PipelineOutput(
            prompts=[row.task.caption for row in rows],
            plans=[read_plan(one.plan_ids, tokenizer) for one in ordered],
            plan_ids=[one.plan_ids for one in ordered],
            images=[one.image for one in painted if one.image is not None],
            image_ids=[one.image_ids for one in painted],
            plan_logps=[one.plan_logp_T for one in ordered],
            image_logps=[one.image_logp_U for one in painted],
        )

    def _rollouts(
        self, rows: list[SampleTask], sampling: SamplerConfig, seed: int, with_images: bool
    ) -> list[tuple[tuple[SampleTask, ...], Rollout]]:
        """All rows in batches that fit into memory."""
        from gotr1_jax.generate.generator import find_batch_size

        limit, bucket = sampling.max_plan_tokens, sampling.plan_bucket
        sizes = batch_sizes(rows, limit, bucket)
        branches = self.runner.sampler(sampling).branches
        given = any(row.plan_ids for row in rows)
        wanted = None if self.batch_size is None else min(self.batch_size, sizes.rows)
        size = find_batch_size(self.runner, sizes, branches, given, wanted)
        return [
            (batch.samples, self.runner.sample(batch, sampling, seed, with_images))
            for batch in make_batches(rows, size, limit, bucket)
        ]

    def _settings(self, options: SamplingOptions) -> _Settings:
        """The settings of a call; InputError for what cannot be meant."""
        if unknown := set(options) - set(SamplingOptions.__annotations__):
            raise InputError(
                f"{sorted(unknown)[0]!r} is no setting of sampling; choose from "
                f"{', '.join(SamplingOptions.__annotations__)}"
            )
        given: dict[str, object] = {k: v for k, v in options.items() if v is not None}
        if "temperature" in given:
            given["text_temperature"] = given.pop("temperature")
            given.setdefault("image_temperature", given["text_temperature"])
        if isinstance(template := given.get("template"), str):
            given["template"] = read_template(template)
        stated = GenerationConfig(**given).or_else(self.generation_config)  # type: ignore[arg-type]
        assert stated.template is not None
        return _Settings(SamplerConfig.of(stated), stated.template)

    def _judged(self, out: PipelineOutput, n: int, judge: Judge | str | None) -> PipelineOutput:
        if judge is None:
            return out
        # Imported late: sampling needs none of it.
        from gotr1_jax.rewards.base import JudgeRequest

        scorer = find_judge(judge) if isinstance(judge, str) else judge
        requests = [
            JudgeRequest(prompt, plan, np.asarray(image), group=i // n)
            for i, (prompt, plan, image) in enumerate(zip(out.prompts, out.plans, out.images))
        ]
        return replace(out, results=scorer.judge(requests))


@dataclass(frozen=True)
class _Settings:
    sampling: SamplerConfig
    prompt_template: str


@dataclass(frozen=True)
class _Drawn:
    """One sample; image None: only its plan was drawn."""

    plan_ids: list[int]
    image_ids: list[int]
    image: Image.Image | None
    plan_logp_T: np.ndarray
    image_logp_U: np.ndarray


def _as_tasks(
    prompt: str | Sequence[str], n: int, plans: Sequence[Plan | str] | None
) -> list[CaptionTask]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise InputError("there is no prompt; give one or more")
    if n < 1:
        raise InputError(f"n is {n}; draw 1 sample or more of each prompt")
    if plans is not None and len(plans) != len(prompts):
        raise InputError(f"{len(plans)} plans for {len(prompts)} prompts: give one for each")
    return caption_tasks(prompts, None if plans is None else [str(plan) for plan in plans], n)


def _as_image(image: ImageLike) -> Image.Image:
    if isinstance(image, str | Path):
        return open_image(Path(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise InputError(
                f"an image is {image.dtype} {image.shape}; give uint8 (height, width, 3)"
            )
        return Image.fromarray(image)
    return image.convert("RGB")


def find_judge(name: str) -> Judge:
    """The exact judge, or a function of one's own whose term has its name."""
    from gotr1_jax.rewards.python import PythonJudge
    from gotr1_jax.rewards.shapes import ShapesJudge

    if name == "shapes":
        return ShapesJudge()
    if ":" not in name:
        raise InputError(f"judge is {name!r}; give shapes, file.py:function, or a judge")
    return PythonJudge(name, [name.rpartition(":")[2]])
