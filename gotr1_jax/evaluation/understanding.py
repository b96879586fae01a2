"""What a model still understands after training: `gotr1 eval understanding`.

Two checkpoints answer the same questions about the same images; right answers are counted. Writes
answers.jsonl (a line a question: the question, the right answers, both checkpoints' answers and
how they were read), scores.md and, last, scores.json. Each answer is stored in OUT/asked at once,
by the checkpoint's weights, the question and the image. A stopped command continues from there,
and no question is asked twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gotr1_jax.config import CheckedConfig
from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.facts import content_digest, facts_lines
from gotr1_jax.evaluation.options import CHECKPOINT, add_card_option, begin_card, finish_card
from gotr1_jax.evaluation.queries import UNBOUNDED
from gotr1_jax.evaluation.results import SCORES, TABLE, check_out
from gotr1_jax.evaluation.understanding_questions import (
    ALL,
    UnderstandingQuestion,
    read_questions,
    write_shapes_questions,
)
from gotr1_jax.evaluation.understanding_scores import ScoredAnswer, compare, table, verdict
from gotr1_jax.generate.options import add_dtype_option
from gotr1_jax.io.files import atomic_write, write_json_atomic
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.limits import FilledText, Fraction, ItemCount, RowCount, Seed, TokenCount
from gotr1_jax.vlm_engine.answer_cache import AnswerCache

if TYPE_CHECKING:
    from gotr1_jax.generate.answer_questions import GeneratedAnswer

ANSWERS = "answers.jsonl"
CACHE = "asked"
AnswerFunction = Callable[[Sequence[UnderstandingQuestion]], "Sequence[GeneratedAnswer]"]


@dataclass(frozen=True)
class UnderstandingConfig(CheckedConfig):
    """The options of the command, see `add_arguments`; answers are decoded greedily."""

    out: Path
    ckpt: FilledText
    baseline: FilledText
    data: Path | None = None
    questions: ItemCount = 256
    seed: Seed = 0
    batch: RowCount = 16
    max_tokens: TokenCount = 32
    max_bad: Fraction = 0.02
    dtype: Literal["float32", "bfloat16"] | None = None
    system: str = ""

    def check(self) -> None:
        """A directory that can be written."""
        check_out(self.out)


@dataclass(frozen=True)
class Respondent:
    """One of the two checkpoints.

    Attributes:
      identity: all that its answers depend on besides question and image.
      load: returns the function that answers; called only if an answer is missing.
    """

    identity: str
    load: Callable[[], AnswerFunction]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval understanding`."""
    parser.add_argument(
        "--ckpt", required=True, metavar="CKPT",
        help=CHECKPOINT,
    )  # fmt: skip
    parser.add_argument(
        "--baseline", required=True, metavar="CKPT", help="checkpoint to compare with, likewise"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE",
        help="questions: JSON lines with image, question, answer, and choices or kind where there "
        "are any (default: generated from held-out scenes of the shapes world)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--questions", type=int, default=256, metavar="N", help="generated without --data (256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of generated questions (0)")
    parser.add_argument("--batch", type=int, default=16, help="questions asked at once (16)")
    parser.add_argument(
        "--max-tokens",
        type=int,
        default=32,
        metavar="T",
        help="longest answer; a longer one is cut (32)",
    )
    parser.add_argument(
        "--max-bad", type=float, default=0.02, metavar="SHARE",
        help="share of the lines of --data that may be left out (0.02)",
    )  # fmt: skip
    parser.add_argument("--system", default="", metavar="TEXT", help="line before each question")
    add_dtype_option(parser)
    add_card_option(parser)


def run(options: argparse.Namespace) -> None:
    """Collect and compare the answers, print the table."""
    begin_card(options)
    names = UnderstandingConfig.__dataclass_fields__
    config = UnderstandingConfig(**{name: getattr(options, name) for name in names})
    print(evaluate_understanding(config))
    print(config.out)
    values = read_json_object(config.out / SCORES)
    scores = values.pop("scores")
    del values["left_out"]  # names lines of a file that need not be public
    finish_card(options, "Understanding", values, scores)


def evaluate_understanding(
    config: UnderstandingConfig, respondents: Mapping[str, Respondent] | None = None
) -> str:
    """Collects the answers of both, writes the results, returns the table.

    respondents: by "ckpt" and "baseline"; None: the checkpoints of the configuration.

    Raises InputError for bad input, RunError where a file cannot be written.
    """
    data = config.data or write_shapes_questions(config.out, config.questions, config.seed)
    questions, bad = read_questions(data, config.max_bad)
    respondents = respondents or {
        name: _checkpoint_respondent(getattr(config, name), questions, config)
        for name in ("ckpt", "baseline")
    }
    cache = AnswerCache(config.out / CACHE, UNBOUNDED)
    answers = {
        name: _collect_answers(name, respondent, questions, cache, config.batch)
        for name, respondent in respondents.items()
    }
    compared = compare(questions, answers["ckpt"], answers["baseline"])
    notes = [verdict(compared[ALL]), f"Checkpoint: {config.ckpt}; baseline: {config.baseline}."]
    if bad:
        notes.append(f"{len(bad)} lines were left out: see {SCORES}.")
    facts = {"questions": _facts(config, data, questions)}
    notes += facts_lines(facts)
    text = table(compared, notes)
    atomic_write(config.out / ANSWERS, "".join(_lines(questions, answers)))
    atomic_write(config.out / TABLE, text)
    write_json_atomic(
        config.out / SCORES,
        {
            "evaluation": "understanding",
            "ckpt": config.ckpt,
            "baseline": config.baseline,
            "data": str(data),
            "left_out": bad,
            **facts,
            "scores": {name: comparison.to_json() for name, comparison in compared.items()},
            "notes": notes,
        },
    )
    return text


def _facts(
    config: UnderstandingConfig, data: Path, questions: Sequence[UnderstandingQuestion]
) -> dict[str, object]:
    """How the questions were asked, which must travel with the numbers; no image is sampled."""
    from gotr1_jax.parallel.startup import default_dtype

    asked = [(q.prompt, q.image_digest, list(q.accepted)) for q in questions]
    return {
        "file": data.name,
        "number": len(questions),
        "sha256": content_digest(asked),
        "system": config.system,
        "max_tokens": config.max_tokens,
        "dtype": config.dtype or default_dtype(),
    }


def _collect_answers(
    name: str,
    respondent: Respondent,
    questions: Sequence[UnderstandingQuestion],
    cache: AnswerCache,
    batch: int,
) -> list[ScoredAnswer]:
    """The answers to all questions, in order; stored ones are not asked again."""
    from gotr1_jax.parallel.progress import Progress

    keys = [_key(respondent.identity, question) for question in questions]
    missing = [(k, q) for k, q in dict(zip(keys, questions)).items() if cache.get(k) is None]
    if missing:
        answer = respondent.load()
        done = len(questions) - len(missing)
        with Progress(name, len(questions), start=done, unit="question") as progress:
            for start in range(0, len(missing), batch):
                group = missing[start : start + batch]
                new = answer([question for _, question in group])
                cache.add({k: {"said": a.text, "ended": a.ended} for (k, _), a in zip(group, new)})
                done += len(group)
                progress.update(done)
    return [
        _scored(question, str(stored["said"]), bool(stored["ended"]))
        for question, key in zip(questions, keys)
        if (stored := cache.get(key)) is not None
    ]


def _scored(question: UnderstandingQuestion, text: str, ended: bool) -> ScoredAnswer:
    return ScoredAnswer(text, ended, question.read(text), question.is_right(text))


def _key(identity: str, question: UnderstandingQuestion) -> str:
    parts = (identity, question.prompt, question.image_digest)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _lines(
    questions: Sequence[UnderstandingQuestion], answers: Mapping[str, Sequence[ScoredAnswer]]
) -> Iterator[str]:
    for index, question in enumerate(questions):
        record = {
            "line": question.line,
            "image": str(question.image),
            "question": question.text,
            "asked": question.prompt,
            "kind": question.kind,
            "form": question.form,
            "accepted": question.accepted,
            **{name: given[index].to_json() for name, given in answers.items()},
        }
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _checkpoint_respondent(
    name: str, questions: Sequence[UnderstandingQuestion], config: UnderstandingConfig
) -> Respondent:
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.generate.config import fingerprint
    from gotr1_jax.parallel.startup import default_dtype

    source, dtype = find_checkpoint(name), config.dtype or default_dtype()
    identity = (fingerprint(source), dtype, config.max_tokens, config.system)
    return Respondent(repr(identity), lambda: _load(source, questions, config, dtype))


def _load(
    source: Path,
    questions: Sequence[UnderstandingQuestion],
    config: UnderstandingConfig,
    dtype: str,
) -> AnswerFunction:
    """The loaded checkpoint; a question that is too long is an InputError before any answer."""
    import jax

    from gotr1_jax.generate.answer_questions import QuestionAnswerer
    from gotr1_jax.generate.runner import ModelRunner
    from gotr1_jax.images import open_image
    from gotr1_jax.sampler.config import AnswerConfig

    runner = ModelRunner(source, dtype, jax.devices()[:1])
    answerer = QuestionAnswerer(runner, AnswerConfig(config.max_tokens), config.system)
    width = 0
    for question in questions:
        try:
            width = max(width, len(answerer.prompt_ids(question.prompt)))
        except InputError as error:
            raise InputError(f"line {question.line} of the questions: {error}") from error

    def answer(group: Sequence[UnderstandingQuestion]) -> Sequence[GeneratedAnswer]:
        # The last group is padded: one shape, one compilation.
        padded = [*group, *[group[-1]] * (min(config.batch, len(questions)) - len(group))]
        prompts = [answerer.prompt_ids(question.prompt) for question in padded]
        raw_images = [open_image(question.image) for question in padded]
        return answerer(prompts, raw_images, width)[: len(group)]

    return answer
