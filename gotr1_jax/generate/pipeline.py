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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import numpy as np
from PIL import Image

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.generation_config import GenerationConfig, read_generation_config
from gotr1_jax.decoding.config import CacheDtype
from gotr1_jax.errors import InputError
from gotr1_jax.generate.arguments import (
    ImageLike,
    as_image,
    as_judge,
    as_list,
    as_tasks,
    plain,
    read_argument,
)
from gotr1_jax.generate.batches import SampleTask, batch_sizes, encode_samples, make_batches
from gotr1_jax.generate.config import BUILT_IN, read_template
from gotr1_jax.generate.tasks import CaptionTask, read_plan
from gotr1_jax.limits import DraftWindow, RowCount, Seed, Temperature
from gotr1_jax.plan import Plan
from gotr1_jax.sampler.config import AnswerConfig, SamplerConfig

if TYPE_CHECKING:
    import jax

    from gotr1_jax.generate.runner import ModelRunner
    from gotr1_jax.rewards.base import Judge, JudgeResult
    from gotr1_jax.sampler.sampler import Rollout


class SamplingOptions(TypedDict, total=False):
    """How plans and images are sampled, where a call says it; else as the checkpoint wants.

    Attributes:
      guidance: w in uncond + w (cond - uncond) for the image; 1: no guidance.
      temperature: divisor of the logits of plan and image.
      image_temperature: of the image alone.
      top_k, top_p, greedy: of plan and image.
      max_plan_tokens: longest plan, without BOI.
      template: a name, a file, or a text with {caption}.
      speculative: positions of the image in one forward pass, see `SamplerConfig`: the same images
        in fewer passes.
      cache_dtype: "int8" takes about half of bfloat16's KV cache, see `SamplerConfig`.
    """

    guidance: float
    temperature: float
    image_temperature: float
    top_k: int
    top_p: float
    greedy: bool
    max_plan_tokens: int
    template: str
    speculative: int
    cache_dtype: CacheDtype


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
      image_passes: forward passes of each image, with `speculative`; else empty.
    """

    prompts: list[str]
    plans: list[Plan]
    plan_ids: list[list[int]]
    images: list[Image.Image]
    image_ids: list[list[int]]
    plan_logps: list[np.ndarray]
    image_logps: list[np.ndarray]
    results: list[JudgeResult] = field(default_factory=list)
    image_passes: list[int] = field(default_factory=list)

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
        self.runner = runner
        self.batch_size = read_argument(RowCount | None, batch_size, "batch_size")
        self.generation_config = read_generation_config(runner.source).or_else(BUILT_IN)

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path = "embedded", *, revision: str | None = None,
        dtype: Literal["float32", "bfloat16"] | None = None,
        devices: Sequence[jax.Device] | None = None, batch_size: int | None = None,
    ) -> Pipeline:  # fmt: skip
        """The checkpoint that is named. Weights are read when they are first needed.

        Compiled programs are kept in the user's cache folder, unless JAX was told otherwise
        (`parallel.compile_cache`).

        Args:
          checkpoint: "embedded", a directory, the directory of a finished run, or an id of the
            Hugging Face hub.
          revision: branch, tag or commit of a hub id.
          dtype: of weights and activations; None: bfloat16, on a CPU float32.
          devices: one or more to work on; None: all.
          batch_size: most rows drawn at once; None: by the free memory.

        Raises InputError for a name without a checkpoint.
        """
        from gotr1_jax.generate.runner import ModelRunner
        from gotr1_jax.parallel.compile_cache import use_compile_cache
        from gotr1_jax.parallel.startup import default_dtype

        if dtype not in (None, "float32", "bfloat16"):
            raise InputError(f"dtype is {dtype!r}; choose float32 or bfloat16")
        source = find_checkpoint(checkpoint, revision)
        use_compile_cache()
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
        scorer = as_judge(judge)
        return _judged(self._draw(as_tasks(prompt, n, None), seed, sampling), n, scorer)

    def plan(
        self, prompt: str | Sequence[str], n: int = 1, seed: int = 0,
        **sampling: Unpack[SamplingOptions],
    ) -> PipelineOutput:  # fmt: skip
        """Draws plans without images: those that a call with the same seed paints."""
        return self._draw(as_tasks(prompt, n, None), seed, sampling, with_images=False)

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
        plans, scorer = as_list(plan, (str, Plan), "plan"), as_judge(judge)
        return _judged(self._draw(as_tasks(prompt, n, plans), seed, sampling), n, scorer)

    def describe(
        self, image: ImageLike | Sequence[ImageLike], question: str, *, system: str = "",
        max_tokens: int = 512, temperature: float = 0.0, seed: int = 0,
    ) -> str:  # fmt: skip
        """The answer to a question about one image or more, in their order.

        Args:
          image: PIL image of any mode, uint8 (H, W, 3), or file.
          question: what to ask.
          system: text before the conversation; Janus's demo has one.
          max_tokens: a longer answer is cut.
          temperature: 0: always the most likely token.
          seed: of sampling at a temperature above 0.
        """
        from gotr1_jax.generate.answer_questions import QuestionAnswerer

        several = as_list(image, (Image.Image, np.ndarray, str, Path), "image")
        images = [as_image(part) for part in several]
        seed, question = read_argument(Seed, seed, "seed"), read_argument(str, question, "question")
        config = AnswerConfig(plain(max_tokens), plain(temperature))
        answerer = QuestionAnswerer(self.runner, config, read_argument(str, system, "system"))
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

    def push_to_hub(
        self, repo: str, *, license: str, base: str | None = None, private: bool = False,
        message: str = "Upload by gotr1_jax", dtype: Literal["float32", "bfloat16"] | None = None,
    ) -> str:  # fmt: skip
        """Uploads what `save_pretrained` writes, with a model card, as `gotr1 push` does.

        Args:
          repo: ORG/NAME; it is made if it is not there.
          license: of the model, as the hub calls it: mit, apache-2.0, other, ...
          base: hub id of the model that training began from; None: as the run says, if it does.
          private: make a new repository private.
          message: of the commit.
          dtype: as of `save_pretrained`.

        Returns the address of the commit. Raises InputError for ids that cannot be, and without a
        token that may write there; RunError where the hub cannot be reached.
        """
        from gotr1_jax.convert.find import run_of_model
        from gotr1_jax.grpo.push import base_on_hub, check_names, push_model
        from gotr1_jax.report.model_card import CardFacts

        check_names(repo, base, license)
        run_dir = run_of_model(self.runner.source)
        facts = CardFacts(repo.partition("/")[2], "original", base or base_on_hub(run_dir), license)
        write_model = partial(self.save_pretrained, dtype=dtype)
        return push_model(write_model, run_dir, repo, facts, private=private, message=message)

    def _draw(
        self, tasks: list[CaptionTask], seed: int, options: SamplingOptions,
        with_images: bool = True,
    ) -> PipelineOutput:  # fmt: skip
        seed, settings = read_argument(Seed, seed, "seed"), self._settings(options)
        sampling, tokenizer = settings.sampling, self.runner.tokenizer
        rows = list(encode_samples(tasks, tokenizer, settings))
        drawn = dict[tuple[int, int], _Drawn]()
        for batch_rows, rollout in self._rollouts(rows, sampling, seed, with_images):
            ids_BU = np.asarray(rollout.rows.image_ids_BU)[: len(batch_rows)]
            passes_B = rollout.passes_B
            pixels = self.runner.decode(ids_BU) if with_images else []
            for i, row in enumerate(batch_rows):
                length = int(rollout.rows.plan_len_B[i])
                drawn[row.task.index, row.index] = _Drawn(
                    rollout.rows.plan_ids_BT[i, :length].tolist(), ids_BU[i].tolist(),
                    Image.fromarray(pixels[i]) if with_images else None,
                    np.asarray(rollout.plan_logp_BT[i, :length]),
                    np.asarray(rollout.image_logp_BU[i]),
                    None if passes_B is None else int(passes_B[i]),
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
            image_passes=[one.passes for one in painted if one.passes is not None],
        )

    def _rollouts(
        self, rows: list[SampleTask], sampling: SamplerConfig, seed: int, with_images: bool
    ) -> list[tuple[tuple[SampleTask, ...], Rollout]]:
        """All rows in batches that fit into memory."""
        from gotr1_jax.generate.generator import find_batch_size

        limit, bucket = sampling.max_plan_tokens, sampling.plan_bucket
        sizes = batch_sizes(rows, limit, bucket)
        self.runner.sampler(sampling)  # refuses what the model cannot do
        given = any(row.plan_ids for row in rows)
        wanted = None if self.batch_size is None else min(self.batch_size, sizes.rows)
        size = find_batch_size(self.runner, sizes, sampling, given, wanted)
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
        given = {k: plain(v) for k, v in options.items() if v is not None}
        if "temperature" in given:
            both = read_argument(Temperature, given.pop("temperature"), "temperature")
            given = {"image_temperature": both, **given, "text_temperature": both}
        if isinstance(template := given.get("template"), str):
            given["template"] = read_template(template)
        window = read_argument(DraftWindow, given.pop("speculative", 0), "speculative")
        cache = read_argument(CacheDtype, given.pop("cache_dtype", "auto"), "cache_dtype")
        stated = GenerationConfig(**given).or_else(self.generation_config)
        assert stated.template is not None
        sampling = replace(SamplerConfig.of(stated), speculative=window, cache_dtype=cache)
        return _Settings(sampling, stated.template)


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
    passes: int | None


def _judged(out: PipelineOutput, n: int, judge: Judge | None) -> PipelineOutput:
    if judge is None:
        return out
    # Imported late: sampling needs none of it.
    from gotr1_jax.rewards.base import JudgeRequest

    requests = [
        JudgeRequest(prompt, plan, np.asarray(image), group=i // n)
        for i, (prompt, plan, image) in enumerate(zip(out.prompts, out.plans, out.images))
    ]
    results = list(judge.judge(requests))
    if len(results) != len(requests):
        raise InputError(
            f"the judge gave {len(results)} results for {len(requests)} samples; it must give one "
            "for each"
        )
    return replace(out, results=results)
