"""`gotr1 eval geneval2`: Soft-TIFA, how sure a model that sees the image is of the right answers.

The formulas (arXiv 2512.16853) are in `rewards.atoms`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from gotr1_jax.evaluation import benchmark
from gotr1_jax.evaluation.folders import find_numbered_images
from gotr1_jax.evaluation.results import make_row, rows_apart
from gotr1_jax.evaluation.word_rules import WordQuestion, WordRules
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.rewards.atoms import Atom, arithmetic_mean, geometric_mean, read_atoms

NAME = "geneval2"
MANIFEST = "images.json"
_CAPTIONS = 800
_TEXT = "answers are read as text, 1 or 0 (TIFA), in the place of probabilities (Soft-TIFA)"
_JUDGE_NAME = "Qwen3-VL-8B-Instruct"
_JUDGE = f"published numbers are by {_JUDGE_NAME}"
_NOTE = (
    "am and gm: the mean over the captions of the arithmetic and the geometric mean over their "
    "questions. Rows of skills: the mean over questions; their column captions counts questions, "
    "and their intervals resample questions. Rows of atoms: gm of the captions with so many."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 eval geneval2`."""
    benchmark.add_arguments(parser, "plain", {}, "the benchmark's geneval2_data.jsonl")


def run(options: argparse.Namespace) -> None:
    """Generate the images if needed, ask about them, write the results."""
    captions = read_atoms(options.prompts, skills=True)
    benchmark.check_options(options, ["word"])
    texts = [item.caption for item in captions]
    prompts = benchmark.write_captions(options.out, texts)
    folder, count = benchmark.image_folder(options, "plain", prompts)
    items = find_numbered_images(folder, [str(i) for i in range(len(texts))], texts, count)
    models, names = benchmark.open_models(options, ["word"])
    rules = WordRules([[_question(atom) for atom in c.atoms] for c in captions], combine)
    scores = benchmark.score_images(items, rules, models, NAME)
    reading, notes = benchmark.word_reading(options)
    is_text = reading == "text"
    is_published = _JUDGE_NAME.lower() in names["word"].lower()
    remarks = [*([] if is_published else [_JUDGE]), *([_TEXT] if is_text else [])]
    if len(captions) != _CAPTIONS:
        remarks.append(f"{len(captions)} captions in the place of {_CAPTIONS}")
    scorer, remark = names["word"], " and ".join(remarks)
    of, gm = [item.caption for item in items], [score.values["gm"] for score in scores]
    rows = [
        make_row("gm", gm, of, scorer, remark),
        make_row("am", [score.values["am"] for score in scores], of, scorer, remark),
    ]
    skills = [replace(row, scorer=scorer, remark=remark) for row in rules.tag_rows()]
    rows, by_number = rows_apart(rows, skills, "questions"), []
    for number in sorted({item.atom_count for item in captions} - {0}):
        places = [i for i, caption in enumerate(of) if captions[caption].atom_count == number]
        values = [gm[i] for i in places]
        by_number.append(
            make_row(f"{number} atoms", values, [of[i] for i in places], scorer, remark)
        )
    rows = rows_apart(rows, by_number, "captions")
    records = [
        benchmark.image_record(item, texts[item.caption], score)
        for item, score in zip(items, scores)
    ]
    head = {"benchmark": NAME, "scorer": "judge", "reading": reading}
    head |= benchmark.facts_head(options, "plain", options.prompts, texts, scores, [scorer])
    # As the benchmark's own evaluator wants it.
    paths = {texts[item.caption]: str(item.path.absolute()) for item in reversed(items)}
    write_json_atomic(options.out / MANIFEST, paths)
    shown = benchmark.shown_images(items, texts, scores, folder)
    benchmark.finish(options, "GenEval 2", head, rows, records, [_NOTE, *notes], shown)


def _question(atom: Atom) -> WordQuestion:
    return WordQuestion(atom.text, ((atom.words, 1.0),), tags=(atom.skill,), name=atom.question)


def combine(questions: Sequence[WordQuestion], values: Sequence[float]) -> dict[str, float]:
    """am and gm of an image's answers."""
    return {"gm": geometric_mean(values), "am": arithmetic_mean(values)}
