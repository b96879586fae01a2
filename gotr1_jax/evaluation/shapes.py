"""The shapes world's own benchmark: `gotr1 eval shapes`.

Generates plans and images for held-out captions, or takes existing ones, and scores them with the
exact judge. With the same weights, captions and seed the scores equal those of a GRPO run before
and after its training. OUT/samples/00000 holds the samples of caption 0 in a run's format. Each
folder is written atomically; a stopped command continues with the next caption.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gotr1_jax.config import CheckedConfig, load_config
from gotr1_jax.convert.find import RUN_CONFIG
from gotr1_jax.convert.generation_config import GenerationConfig, resolve_sampling
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.facts import (
    caption_facts,
    facts_lines,
    image_facts,
    sampling_facts,
    training_judge,
)
from gotr1_jax.evaluation.gallery import GalleryImage
from gotr1_jax.evaluation.options import (
    CHECKPOINT,
    add_batch_size,
    add_card_option,
    add_sampling_options,
    begin_card,
    finish_card,
)
from gotr1_jax.evaluation.results import IMAGES, ResultRow, check_out, write_results
from gotr1_jax.generate.config import (
    SETTINGS_FILE,
    check_settings_file,
    checkpoint_settings,
    optional_template,
)
from gotr1_jax.grpo.config import SAMPLED, GrpoConfig, RewardConfig
from gotr1_jax.grpo.sampled import BUILT_IN
from gotr1_jax.images import image_size
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.io.strict_yaml import read_yaml_file
from gotr1_jax.jobs import add_fields_help, sections_of_jobs
from gotr1_jax.limits import FilledText, ItemCount, RowCount, Seed
from gotr1_jax.rewards.base import Judge, result_from_json, stack_scores
from gotr1_jax.rewards.combine import combine
from gotr1_jax.rewards.factory import check_functions, make_judge
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.judging import judge_samples
from gotr1_jax.rewards.stored_samples import StoredSample, find_samples
from gotr1_jax.rewards.terms import TermConfig
from gotr1_jax.sampler.config import sampling_defaults
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.shapes.judge import SHAPES_TERMS

if TYPE_CHECKING:
    from gotr1_jax.grpo.evaluate import Evaluation
    from gotr1_jax.trainer.samples import SampleRecord

NOTE = "evaluation.json"
CAPTIONS = "the held-out captions of the shapes world"
# As in the shipped recipes for this world, where the checkpoint does not say it.
_RECIPE = sampling_defaults(*SAMPLED, "template", max_plan_tokens=80, guidance=3.0)
_REWARD = RewardConfig(total="v2")


@dataclass(frozen=True)
class ShapesEvaluationConfig(CheckedConfig):
    """What to generate and score.

    Attributes:
      out: directory of the results.
      ckpt: checkpoint directory, finished run, hub id, or "embedded"; None with `images`.
      images: output of `gotr1 generate` or a run; None with `ckpt`.
      job: a GRPO configuration: its policy, rollout and reward settings are used.
      captions, samples: number of held-out captions, and of images of each.
      seed: of sampling.
      batch_size: rows sampled at once.
    """

    out: Path
    ckpt: FilledText | None
    images: Path | None
    job: GrpoConfig
    captions: ItemCount
    samples: RowCount
    seed: Seed
    batch_size: RowCount

    def check(self) -> None:
        """A directory that can be written, and terms of the exact judge."""
        check_out(self.out)
        reward = self.job.reward
        for name in dict.fromkeys((*reward.terms, *reward.expression.names)):
            term = reward.terms.get(name, TermConfig())
            if term.source == "judge" and name not in SHAPES_TERMS:
                raise InputError(
                    f"reward.terms holds {name!r}, which the exact judge does not score; choose "
                    f"from {', '.join(SHAPES_TERMS)}, or give the term a source of its own"
                )

    def judge(self) -> Judge:
        """The exact judge, and those of the reward's terms that have a source of their own."""
        return make_judge(JudgeConfig(terms=SHAPES_TERMS), terms=self.job.reward.terms)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval shapes`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--ckpt", metavar="CKPT",
        help=f"{CHECKPOINT}: generates the images",
    )  # fmt: skip
    source.add_argument(
        "--images", type=Path, metavar="DIR", help="output of gotr1 generate or of a run"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help="GRPO configuration with sampling, template, reward and numbers (default: that of "
        "the run in --ckpt)",
    )  # fmt: skip
    parser.add_argument("--captions", type=int, metavar="N", help="held-out captions (128)")
    parser.add_argument("--samples", type=int, metavar="N", help="images per caption (4)")
    parser.add_argument(
        "--seed", type=int, help="of sampling (that of the evaluations in gotr1 train grpo)"
    )
    add_fields_help(parser, lambda _: sections_of_jobs(("grpo",)))
    names = ("cfg", "max-plan-tokens")
    add_sampling_options(parser, names, "--config or the checkpoint", _RECIPE)
    add_batch_size(parser)
    add_card_option(parser)


def run(options: argparse.Namespace) -> None:
    """Generate the images if needed, score them, write the results."""
    begin_card(options)
    config = read_options(options)
    check_functions(JudgeConfig(), config.job.reward.terms)  # before images are generated
    if config.images is None:
        _generate(config)
    judge, samples = config.judge(), find_samples(config.images or config.out)
    lines = judge_samples(judge, samples, config.out / IMAGES)
    reward = config.job.reward
    scored, failed = score(lines, reward)
    rows = [
        ResultRow(name, (values,), len(lines), failed[name], _judge_name(config.job.reward, name))
        for name, values in {"total": scored.total, **scored.terms}.items()
    ]
    head = {
        "evaluation": "shapes",
        "ckpt": config.ckpt,
        "images": None if config.images is None else str(config.images),
        "by_caption": scored.to_json(),
        **_facts(config, samples),
    }
    notes = [f"total: {reward.total} of {', '.join(reward.terms)}.", *facts_lines(head)]
    shown = _shown_images(lines, samples, reward)
    title = "The shapes world: held-out captions"
    write_results(config.out, title, head, rows, lines, notes, shown)
    finish_card(options, title, head, {row.name: row.to_json() for row in rows})


def _facts(config: ShapesEvaluationConfig, samples: Sequence[StoredSample]) -> dict[str, Any]:
    """What must travel with the numbers; see `facts`."""
    captions = list(dict.fromkeys(sample.caption for sample in samples))
    sampling = {**config.job.sampled.stated, "seed": config.seed}
    if config.job.rollout.cache_dtype != "auto":
        sampling["cache_dtype"] = config.job.rollout.cache_dtype
    source = config.ckpt or f"{config.images} (given)"
    if config.images is not None:
        made = {}
        with suppress(InputError):  # a file of samples has none beside it
            made = read_json_object(config.images / SETTINGS_FILE, missing_ok=True)
        sampling = sampling_facts(made)
        source = str(made.get("checkpoint", source))
    sizes = [image_size(sample.image) for sample in samples]
    where = CAPTIONS if config.images is None else "the images' own"
    return {
        "sampling": sampling,
        "captions": caption_facts(captions, where),
        "images": image_facts(sizes, len(captions), source),
        "training_judge": training_judge(config.ckpt or config.images, ["the exact judge"]),
    }


def _shown_images(
    lines: Sequence[Mapping[str, Any]], samples: Sequence[StoredSample], reward: RewardConfig
) -> list[GalleryImage]:
    """The images of the gallery: the total first, then every score of the judge."""
    results = [result_from_json(line) for line in lines]
    columns = stack_scores(results, tuple(lines[0]["scores"]))
    totals = combine(columns, reward.total, reward.terms)
    return [
        GalleryImage(
            name=sample.name,
            path=sample.image,
            caption=sample.caption,
            group=sample.group,
            scores={"total": float(total), **result.scores},
            plan=sample.plan_text,
            words=result.rationale,
            detections=result.detections,
        )
        for sample, result, total in zip(samples, results, totals, strict=True)
    ]


def _judge_name(reward: RewardConfig, name: str) -> str:
    term = reward.terms.get(name)
    return "exact judge" if term is None or term.source == "judge" else f"own: {term.source}"


def read_options(options: argparse.Namespace) -> ShapesEvaluationConfig:
    """The options, completed by the configuration's values, else those of the shipped recipes."""
    from gotr1_jax.grpo.evaluate import EVALUATION_SEED

    given = GenerationConfig(
        guidance=options.cfg, max_plan_tokens=options.max_plan_tokens,
        template=optional_template(options.template),
    )  # fmt: skip
    job = _base_job(options.config, options.ckpt, given)
    evaluation = job.evaluation
    return ShapesEvaluationConfig(
        out=options.out,
        ckpt=options.ckpt,
        images=options.images,
        job=job,
        captions=evaluation.captions if options.captions is None else options.captions,
        samples=evaluation.samples if options.samples is None else options.samples,
        seed=EVALUATION_SEED if options.seed is None else options.seed,
        batch_size=options.batch_size,
    )


def _base_job(path: Path | None, ckpt: str | None, given: GenerationConfig) -> GrpoConfig:
    """The configuration in a file, else of the evaluated GRPO run, else of the recipes.

    Its sampling is as `given`, else of the file, else of the checkpoint, of its run, or a recipe's.
    """
    # Imported late: an id may be fetched.
    from gotr1_jax.convert.find import find_checkpoint

    source = None if ckpt is None else find_checkpoint(ckpt)
    if path is not None:
        job = load_config(GrpoConfig, path)
        return resolve_sampling(job.sampled_as(given.or_else(job.sampled)), source, BUILT_IN)
    job, former = GrpoConfig(run_dir="none", reward=_REWARD), GenerationConfig()
    own = Path(ckpt or "") / RUN_CONFIG
    if ckpt is not None and own.is_file():
        values = read_yaml_file(own)
        # Only GRPO runs sample images: the configurations of other jobs do not fit.
        if isinstance(values, dict) and "rollout" in values:
            job = load_config(GrpoConfig, own)
            former = job.sampled
    return resolve_sampling(job.sampled_as(given), source, former.or_else(_RECIPE))


def score(
    lines: Sequence[Mapping[str, Any]], reward: RewardConfig
) -> tuple[Evaluation, dict[str, int]]:
    """Scores by caption, and for each term the number of images that could not be scored.

    lines: of `judge_samples`, all with the same terms. Captions may have different
    numbers of images.
    """
    from gotr1_jax.grpo.evaluate import score_captions

    by_caption: dict[str, list[int]] = {}
    for index, line in enumerate(lines):
        by_caption.setdefault(line["caption"], []).append(index)
    most = max(map(len, by_caption.values()))
    # Missing images of a caption point to an appended NaN.
    index_B = np.concatenate([i + [len(lines)] * (most - len(i)) for i in by_caption.values()])
    scores = {
        term: np.asarray([line["scores"][term] for line in lines], np.float32)  # null is NaN
        for term in lines[0]["scores"]
    }
    total = combine(scores, reward.total, reward.terms)
    failed = {n: int(np.isnan(v).sum()) for n, v in {"total": total, **scores}.items()}

    def caption_major(values: np.ndarray) -> np.ndarray:
        return np.append(values, np.float32("nan"))[index_B]

    by_term = {term: caption_major(values) for term, values in scores.items()}
    return score_captions(by_term, caption_major(total), most), failed


def _generate(config: ShapesEvaluationConfig) -> None:
    """Generate and write the samples of captions that have none."""
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.io.files import write_json_atomic
    from gotr1_jax.parallel.progress import Progress
    from gotr1_jax.trainer.run_dir import SAMPLES_NAME
    from gotr1_jax.trainer.samples import write_samples

    assert config.ckpt is not None
    captions = shapes_captions("heldout", config.captions)
    source, folder = find_checkpoint(config.ckpt), config.out / SAMPLES_NAME
    note = _note(config, source)
    if (config.out / NOTE).exists():
        check_settings_file(config.out / NOTE, note)
    missing = [i for i in range(len(captions)) if not (folder / _name(i)).is_dir()]
    if not missing:
        return
    sample = _load_sampler(config, source, captions)
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(config.out / NOTE, note)
    for unfinished in folder.glob(".*"):
        shutil.rmtree(unfinished)
    done = len(captions) - len(missing)
    with Progress("captions", len(captions), start=done, unit="caption") as progress:
        size = max(1, min(len(captions), config.batch_size // config.samples))
        for start in range(0, len(missing), size):
            group = missing[start : start + size]
            # The last group is padded: one shape, one compilation.
            records = sample(group + group[-1:] * (size - len(group)))
            for i, index in enumerate(group):
                own = records[i * config.samples : (i + 1) * config.samples]
                write_samples(folder, 0, own, name=_name(index))
            done += len(group)
            progress.update(done)


def _name(index: int) -> str:
    return f"{index:05d}"


def _note(config: ShapesEvaluationConfig, source: Path) -> dict[str, Any]:
    """Everything that the images depend on."""
    policy, rollout = config.job.policy, config.job.rollout
    return {
        **checkpoint_settings(source),
        "dtype": [policy.param_dtype, policy.dtype],
        "template": policy.prompt_template,
        "max_plan_tokens": rollout.max_plan_tokens,
        "guidance": rollout.guidance,
        "temperatures": [rollout.text_temperature, rollout.image_temperature],
        "cache_dtype": rollout.cache_dtype,
        "number of captions": config.captions,
        "samples": config.samples,
        "seed": config.seed,
    }


def _load_sampler(
    config: ShapesEvaluationConfig, source: Path, captions: Sequence[str]
) -> Callable[[list[int]], list[SampleRecord]]:
    """A function that generates and judges the samples of the captions with given indices."""
    import jax

    from gotr1_jax.grpo.prompts import encode_captions
    from gotr1_jax.grpo.setup import make_rollout_worker
    from gotr1_jax.grpo.trained_policy import load_trained_policy
    from gotr1_jax.parallel.mesh import make_mesh

    G = config.samples
    rows = max(1, min(len(captions), config.batch_size // G)) * G
    rollout = replace(config.job.rollout, decode_batch=rows, captions_at_once=0)
    job = replace(config.job, rollout=rollout)
    devices = max(n for n in range(1, len(jax.devices()) + 1) if rows % n == 0)
    mesh = make_mesh(devices=jax.devices()[:devices])
    policy, checkpoint = load_trained_policy(job.policy, source, mesh)
    worker = make_rollout_worker(job, policy, checkpoint, config.judge(), mesh)
    prompts = encode_captions(
        captions, checkpoint.tokenizer, job.policy.prompt_template, job.policy.max_prompt_tokens
    )
    params = worker.sampler.prepare(policy.whole(policy.trained))

    def sample(indices: list[int]) -> list[SampleRecord]:
        scored = worker(params, prompts.take(indices), G, config.seed, 0)
        # Each caption has a folder of its own.
        return [replace(record, caption_index=0) for record in scored.records(len(indices))]

    return sample
