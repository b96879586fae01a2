"""What a model still understands after training: `gotr1 eval understanding`.

Asks two checkpoints the same questions about the same images and counts what is right. Writes
answers.jsonl (a line a question: the question, what counts as right, both answers and what was
read out of them), scores.md and, last, scores.json. Each answer is kept in OUT/asked as soon as it
is there, by the checkpoint's weights, the question and the image: a command that was stopped
goes on, and nothing is asked twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.asks import UNBOUNDED
from gotr1_jax.evaluation.understanding_questions import (
    ALL,
    UnderstandingQuestion,
    read_questions,
    write_shapes_questions,
)
from gotr1_jax.evaluation.understanding_rules import read_answer
from gotr1_jax.evaluation.understanding_scores import Answered, compare, table, to_json, verdict

if TYPE_CHECKING:
    from gotr1_jax.generate.asking import GeneratedAnswer
    from gotr1_jax.vlm_engine.answer_cache import AnswerCache

ANSWERS, SCORES, TABLE = "answers.jsonl", "scores.json", "scores.md"
ASKED = "asked"
Ask = Callable[[Sequence[UnderstandingQuestion]], "Sequence[GeneratedAnswer]"]


@dataclass(frozen=True)
class UnderstandingConfig:
    """Whom to ask what.

    Attributes:
      out: directory of the results.
      ckpt, baseline: checkpoint directory, finished run, hub id, or "embedded".
      data: questions, see `understanding_questions`; None draws them in the shapes world.
      questions, seed: how many are drawn, and their seed.
      batch: questions asked at once.
      max_tokens: longest answer; a longer one is cut. Answers are the most likely ones.
      max_bad: share of the file's lines that may be left out.
      dtype: "float32", "bfloat16", or None: bfloat16 on accelerators, float32 on a CPU.
      system: text in front of each conversation.
    """

    out: Path
    ckpt: str
    baseline: str
    data: Path | None = None
    questions: int = 256
    seed: int = 0
    batch: int = 16
    max_tokens: int = 32
    max_bad: float = 0.02
    dtype: str | None = None
    system: str = ""

    def __post_init__(self) -> None:
        for name, least in {"questions": 1, "seed": 0, "batch": 1, "max_tokens": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give {least} or more")
        if not 0 <= self.max_bad <= 1:
            raise InputError(f"max_bad is {self.max_bad}; give a share from 0 to 1")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"output {self.out} is a file; choose a directory")


@dataclass(frozen=True)
class Side:
    """One of the two that are asked.

    Attributes:
      identity: all that its answers depend on besides question and image.
      load: makes it ready to answer; called only if something is left to ask.
    """

    identity: str
    load: Callable[[], Ask]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval understanding`."""
    parser.add_argument(
        "--ckpt", required=True, metavar="CKPT",
        help="checkpoint directory, finished run, hub id, or embedded",
    )  # fmt: skip
    parser.add_argument(
        "--baseline", required=True, metavar="CKPT", help="what it is compared with, likewise"
    )
    parser.add_argument(
        "--data", type=Path, metavar="FILE",
        help="questions: JSON lines with image, question, answer, and choices or kind where there "
        "are any (default: drawn in the shapes world, held-out scenes)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument(
        "--questions", type=int, default=256, metavar="N", help="to draw, without --data (256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the questions drawn (0)")
    parser.add_argument("--batch", type=int, default=16, help="questions asked at once (16)")
    parser.add_argument(
        "--max-tokens", type=int, default=32, metavar="T", help="longest answer (32)"
    )
    parser.add_argument(
        "--max-bad", type=float, default=0.02, metavar="SHARE",
        help="share of the lines of --data that may be left out (0.02)",
    )  # fmt: skip
    parser.add_argument("--system", default="", metavar="TEXT", help="line before each question")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of weights and activations; default: bfloat16, on a CPU float32",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    names = UnderstandingConfig.__dataclass_fields__
    config = UnderstandingConfig(**{name: getattr(options, name) for name in names})
    print(evaluate_understanding(config), end="")


def evaluate_understanding(
    config: UnderstandingConfig, sides: Mapping[str, Side] | None = None
) -> str:
    """Asks both, writes the results, returns the table.

    sides: by "ckpt" and "baseline", who answers; None are the checkpoints of the configuration.

    Raises InputError for bad input, RunError where a file cannot be written.
    """
    from gotr1_jax.io.files import atomic_write, write_json_atomic
    from gotr1_jax.vlm_engine.answer_cache import AnswerCache

    data = config.data or write_shapes_questions(config.out, config.questions, config.seed)
    questions, bad = read_questions(data, config.max_bad)
    sides = sides or {
        name: _checkpoint_side(getattr(config, name), questions, config)
        for name in ("ckpt", "baseline")
    }
    cache = AnswerCache(config.out / ASKED, UNBOUNDED)
    answers = {
        name: _ask_all(name, side, questions, cache, config.batch) for name, side in sides.items()
    }
    compared = compare(questions, answers["ckpt"], answers["baseline"])
    notes = [verdict(compared[ALL]), *_notes(config, bad)]
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
            "scores": to_json(compared),
            "notes": notes,
        },
    )
    return text


def _ask_all(
    name: str,
    side: Side,
    questions: Sequence[UnderstandingQuestion],
    cache: AnswerCache,
    batch: int,
) -> list[Answered]:
    """One side's answers to all questions, in order; what is kept is not asked again."""
    from gotr1_jax.io.progress import Progress

    keys = [_key(side.identity, question) for question in questions]
    left = {k: q for k, q in zip(keys, questions) if cache.get(k) is None}
    if left:
        ask = side.load()
        done = len(questions) - len(left)
        with Progress(name, len(questions), start=done, unit="question") as progress:
            waiting = list(left.items())
            for start in range(0, len(waiting), batch):
                group = waiting[start : start + batch]
                said = ask([question for _, question in group])
                cache.add({k: {"said": s.text, "ended": s.ended} for (k, _), s in zip(group, said)})
                done += len(group)
                progress.update(done)
    return [_answered(question, cache.get(key)) for key, question in zip(keys, questions)]


def _key(identity: str, question: UnderstandingQuestion) -> str:
    parts = (identity, question.asked, question.image_digest)
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _answered(question: UnderstandingQuestion, kept: Mapping[str, object] | None) -> Answered:
    assert kept is not None
    said = str(kept["said"])
    read = read_answer(said, question.form, question.choices)
    return Answered(said, bool(kept["ended"]), read, question.is_right(said))


def _lines(
    questions: Sequence[UnderstandingQuestion], answers: Mapping[str, Sequence[Answered]]
) -> Iterator[str]:
    for place, question in enumerate(questions):
        record = {
            "line": question.line,
            "image": str(question.image),
            "question": question.text,
            "asked": question.asked,
            "kind": question.kind,
            "form": question.form,
            "accepted": question.accepted,
            **{name: asdict(given[place]) for name, given in answers.items()},
        }
        yield json.dumps(record, ensure_ascii=False) + "\n"


def _notes(config: UnderstandingConfig, bad: Sequence[str]) -> list[str]:
    notes = [f"Checkpoint: {config.ckpt}; baseline: {config.baseline}."]
    return [*notes, f"{len(bad)} lines were left out: see {SCORES}."] if bad else notes


def _checkpoint_side(
    name: str, questions: Sequence[UnderstandingQuestion], config: UnderstandingConfig
) -> Side:
    from gotr1_jax.convert.find import checkpoint_path
    from gotr1_jax.generate.config import fingerprint
    from gotr1_jax.parallel.startup import default_dtype

    source, dtype = checkpoint_path(name), config.dtype or default_dtype()
    identity = (fingerprint(source), dtype, config.max_tokens, config.system)
    return Side(repr(identity), lambda: _load(source, questions, config, dtype))


def _load(
    source: Path,
    questions: Sequence[UnderstandingQuestion],
    config: UnderstandingConfig,
    dtype: str,
) -> Ask:
    """A checkpoint that answers; all questions are encoded first, so that none is too long."""
    from gotr1_jax.generate.asking import ImageQuestioner
    from gotr1_jax.images import open_image
    from gotr1_jax.sampler.answer import AnswerConfig

    asker = ImageQuestioner(source, AnswerConfig(config.max_tokens), dtype, config.system)
    width = 0
    for question in questions:
        try:
            width = max(width, len(asker.prompt_ids(question.asked)))
        except InputError as error:
            raise InputError(f"line {question.line} of the questions: {error}") from error

    def ask(group: Sequence[UnderstandingQuestion]) -> Sequence[GeneratedAnswer]:
        # The last group is filled up: one shape, one compilation.
        filled = [*group, *[group[-1]] * (min(config.batch, len(questions)) - len(group))]
        prompts = [asker.prompt_ids(question.asked) for question in filled]
        raw_images = [open_image(question.image) for question in filled]
        return asker(prompts, raw_images, width)[: len(group)]

    return ask
