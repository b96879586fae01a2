"""Files of checklists: captions with questions, in the formats of several benchmarks.

    own               .jsonl: {"prompt", "id", "tags", "questions": [{"question", "answer",
                      "choices", "tags", "weight"}]}; see docs/benchmarks.md
    UniGenBench       .csv with prompt_en and sub_dims_en (or _zh)      CodeGoat24/UniGenBench
    R2I-Bench         its folder data, with prompts/ and evaluation/    PLUM-Lab/R2I-Bench
    T2I-CoReBench     .json, or the folder of its files                 KwaiVGI/T2I-CoReBench
    SpatialGenEval    .jsonl with questions and answers                 arXiv 2601.20354

The format is told from the content. What is asked in which words is in `checklist_questions`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.evaluation.checklist_questions import choice, fulfilled, graded, yes_or_no
from gotr1_jax.evaluation.checklist_reading import (
    Faults,
    stem_of,
    table_cell,
    table_rows,
    tags_of,
    text_of,
    texts_of,
)
from gotr1_jax.evaluation.word_rules import WordQuestion
from gotr1_jax.io.reading import list_folder, parse_json_object, read_json_object, read_lines

OWN = "checklist"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UNIGENBENCH_KEYS = {
    "en": ("Testpoints", "Testpoint Description"), "zh": ("考点", "考点对应描述")
}  # fmt: skip
_OPTION = re.compile(r"(?:^|[,;\s])\s*([A-Z])\s*[:.)]\s")


@dataclass(frozen=True)
class ChecklistCaption:
    """A caption, its questions, its own tags, and the stem of its images' names."""

    stem: str
    caption: str
    tags: tuple[str, ...]
    questions: tuple[WordQuestion, ...]


@dataclass(frozen=True)
class Checklist:
    """A file's captions; `benchmark` is the name of its format, `notes` what was left out."""

    benchmark: str
    captions: tuple[ChecklistCaption, ...]
    notes: tuple[str, ...] = ()


def read_checklist(path: Path) -> Checklist:
    """The checklist in a file or folder.

    InputError, naming file and line, for a format that is none of those above and for what does
    not fit its format: an answer outside the choices, tags that are missing. Up to 1 % of such
    faults are left out of a file of UniGenBench or SpatialGenEval, and named in `notes`.
    """
    if path.is_dir():
        is_r2i = (path / "evaluation").is_dir() and (path / "prompts").is_dir()
        found = _read_r2i(path) if is_r2i else _read_corebench_folder(path)
    elif path.suffix.lower() == ".csv":
        found = _read_unigenbench(path)
    elif path.suffix.lower() == ".json":
        found = Checklist("T2I-CoReBench", tuple(_read_corebench(path)))
    else:
        found = _read_lines(path)
    if not found.captions:
        raise InputError(f"{path} holds no questions")
    _check(found, path)
    return found


def _check(found: Checklist, path: Path) -> None:
    """InputError for a stem that occurs twice, and for tags on some of a checklist's questions."""
    stems: dict[str, str] = {}
    for item in found.captions:
        if item.stem in stems:
            raise InputError(f"{path} gives {item.stem!r} to two captions; each needs its own")
        stems[item.stem] = item.caption
    if found.benchmark == OWN:
        _check_tags(found, path)


def _check_tags(found: Checklist, path: Path) -> None:
    tagged = {bool(question.tags) for item in found.captions for question in item.questions}
    if len(tagged) == 2:
        item, question = next(
            (item, q) for item in found.captions for q in item.questions if not q.tags
        )
        raise InputError(
            f"{path}: the question {question.name[:60]!r} of {item.stem} has no tags, and others "
            "have; give all of them tags, or none"
        )


def _read_lines(path: Path) -> Checklist:
    name = ""
    captions: list[ChecklistCaption] = []
    faults = Faults()
    for number, line in read_lines(path, "questions"):
        where = f"{path}, line {number}"
        record = parse_json_object(line, where)
        if not name:
            _refuse_others(record, where)
            name = "SpatialGenEval" if "question_type" in record else OWN
        if name == OWN:
            captions.append(_own_caption(record, where, len(captions)))
        else:
            captions.append(_spatial_caption(record, where, len(captions), faults))
    return Checklist(name, tuple(captions), faults.notes())


def _refuse_others(record: Mapping[str, Any], where: str) -> None:
    """InputError for the first line of a file of another benchmark."""
    if "vqa_list" in record:
        raise InputError(f"{where} is of GenEval 2; give it to gotr1 eval geneval2 --prompts")
    if "include" in record and "tag" in record:
        raise InputError(f"{where} is of GenEval; give it to gotr1 eval geneval --prompts")
    if "questions" not in record or "prompt" not in record:
        raise InputError(
            f"{where} has no 'prompt' with 'questions'; give a checklist, or a file of "
            "UniGenBench, R2I-Bench, T2I-CoReBench or SpatialGenEval"
        )


def _own_caption(record: dict[str, Any], where: str, index: int) -> ChecklistCaption:
    caption = text_of(record, "prompt", where)
    questions = record.get("questions")
    if not isinstance(questions, list) or not questions:
        raise InputError(f"{where} has no list of questions under 'questions'")
    made = [
        _own_question(q, caption, f"{where}, question {i}")
        for i, q in enumerate(questions, start=1)
    ]
    return ChecklistCaption(
        stem_of(record, index, where), caption, tags_of(record, where), tuple(made)
    )


def _own_question(value: Any, caption: str, where: str) -> WordQuestion:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no object with the key 'question'")
    unknown = value.keys() - {"question", "answer", "choices", "tags", "weight"}
    if unknown:
        raise InputError(f"{where} has the unknown key {min(unknown)!r}")
    text, weight = text_of(value, "question", where), value.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e6:
        raise InputError(f"{where}: 'weight' is {weight!r}; use a number above 0")
    if "choices" in value:
        choices = _choices(value["choices"], where)
        question = choice(text, choices, _right(choices, value.get("answer", ""), where))
    else:
        answer = str(value.get("answer", "yes")).strip().lower()
        if answer not in ("yes", "no"):
            raise InputError(
                f"{where}: 'answer' is {answer!r}, not yes or no; give 'choices' for any other"
            )
        question = yes_or_no(text, caption, answer)
    return replace(question, weight=float(weight), tags=tags_of(value, where))


def _choices(value: Any, where: str) -> dict[str, str]:
    """Letter -> text."""
    if isinstance(value, list) and len(value) <= len(_LETTERS):
        value = dict(zip(_LETTERS, value))
    good = isinstance(value, dict) and all(
        re.fullmatch("[A-Z]", str(k)) and isinstance(v, str) and v.strip() for k, v in value.items()
    )
    if not good or len(value) < 2 or len({*map(str.strip, value.values())}) < len(value):
        raise InputError(
            f"{where}: 'choices' must be two or more different texts, as a list or by A, B, ..."
        )
    return dict(value)


def _right(choices: Mapping[str, str], given: Any, where: str) -> str:
    """The letter of the right choice, which may be given by its text."""
    answer = str(given).strip()
    by_text = {text.strip(): letter for letter, text in choices.items()}
    found = answer if answer in choices else by_text.get(answer)
    if found is None:
        raise InputError(f"{where}: the answer {answer!r} is none of {', '.join(choices)}")
    return found


def _spatial_caption(
    record: dict[str, Any], where: str, index: int, faults: Faults
) -> ChecklistCaption:
    caption, columns = text_of(record, "prompt", where), []
    for name in ("question_type", "questions", "answers"):
        column = record.get(name)
        if not isinstance(column, list) or not all(isinstance(v, str) for v in column):
            raise InputError(f"{where} has no list of texts under {name!r}")
        columns.append(column)
    if len({*map(len, columns)}) != 1 or not columns[0]:
        raise InputError(f"{where}: question_type, questions and answers have different lengths")
    questions = []
    for number, (kind, text, answer) in enumerate(zip(*columns), start=1):
        with faults.one(f"{where}, question {number}") as place:
            question, found = _split_options(text, place)
            if answer not in found:
                raise InputError(f"{place}: the answer {answer!r} is none of {', '.join(found)}")
            if not kind.strip():
                raise InputError(f"{place} has no question_type")
            questions.append(replace(choice(question, found, answer), tags=(kind,)))
    if not questions:
        raise faults.found[-len(columns[0])]
    scene = record.get("scene")
    tags = (scene,) if isinstance(scene, str) and scene else ()
    return ChecklistCaption(stem_of(record, index, where), caption, tags, tuple(questions))


def _split_options(text: str, where: str) -> tuple[str, dict[str, str]]:
    """A question and its choices by letter, from "... Options: A: ..., B: ..."."""
    question, mark, rest = text.partition("Options:")
    marks: list[re.Match[str]] = []
    for match in _OPTION.finditer(rest):
        # Another letter may be part of a choice; in published files some are left out.
        if not marks or match[1] > marks[-1][1]:
            marks.append(match)
    ends = [m.start() for m in marks[1:]] + [len(rest)]
    found = {m[1]: rest[m.end() : end].strip(" ,;") for m, end in zip(marks, ends)}
    if not mark or len(found) < 2 or not question.strip():
        raise InputError(f"{where} has no choices: {text[:60]!r}; expected ... Options: A: ...")
    return question.strip(), found


def _read_unigenbench(path: Path) -> Checklist:
    captions: list[ChecklistCaption] = []
    faults = Faults()
    for line, row in table_rows(path):
        language = next((n for n in ("en", "zh") if f"prompt_{n}" in row), "")
        if not language or f"sub_dims_{language}" not in row or "index" not in row:
            raise InputError(
                f"{path} has no columns index, prompt_en and sub_dims_en; give UniGenBench's "
                "test_prompts_en.csv"
            )
        with faults.one(f"{path}, line {line}") as where:
            captions.append(_unigenbench_caption(row, language, where))
    return Checklist("UniGenBench", tuple(captions), faults.notes())


def _unigenbench_caption(
    row: Mapping[str, str | None], language: str, where: str
) -> ChecklistCaption:
    caption = text_of(row, f"prompt_{language}", where)
    dims = parse_json_object(row[f"sub_dims_{language}"] or "", f"{where}, sub_dims")
    points, texts = (texts_of(dims.get(name)) for name in _UNIGENBENCH_KEYS[language])
    if not points or not all(points) or len(points) != len(texts):
        raise InputError(f"{where} has no tags: Testpoints with a Testpoint Description each")
    questions = tuple(
        replace(fulfilled(point, text, caption), tags=tuple(dict.fromkeys(_broad(point))))
        for point, text in zip(points, texts)
    )
    return ChecklistCaption(str(row["index"]), caption, (), questions)


def _broad(point: str) -> tuple[str, str]:
    """A test point's dimension, and the point itself."""
    return re.split("[-—]", point)[0].strip(), point


def _read_corebench_folder(folder: Path) -> Checklist:
    files = [file for file in list_folder(folder, "questions") if file.suffix == ".json"]
    if not files:
        raise InputError(f"{folder} holds neither R2I-Bench's data nor .json files of checklists")
    captions = [caption for file in files for caption in _read_corebench(file)]
    return Checklist("T2I-CoReBench", tuple(captions))


def _read_corebench(path: Path) -> Iterator[ChecklistCaption]:
    for stem, entry in read_json_object(path, "questions").items():
        where = f"{path}, {stem}"
        if not isinstance(entry, dict) or not isinstance(entry.get("Checklist"), list):
            raise InputError(f"{where} has no 'Checklist'; give a file of T2I-CoReBench")
        caption = text_of(entry, "Prompt", where)
        tags = tuple(text_of(entry, name, where) for name in ("Main Class", "Sub Class"))
        questions = []
        for number, item in enumerate(entry["Checklist"], start=1):
            place = f"{where}, question {number}"
            if not isinstance(item, dict) or "tags" not in item:
                raise InputError(f"{place} has no 'tags'")
            question = yes_or_no(text_of(item, "question", place), caption, "yes")
            questions.append(replace(question, tags=tags_of(item, place)))
        if not questions:
            raise InputError(f"{where} has no questions")
        yield ChecklistCaption(stem, caption, tags, tuple(questions))


def _read_r2i(folder: Path) -> Checklist:
    captions: list[ChecklistCaption] = []
    left_out: list[str] = []
    for file in sorted((folder / "evaluation").glob("*/*_eval.csv")):
        category, subcategory = file.parent.name, file.name.removesuffix("_eval.csv")
        name = f"{category}_{subcategory}"
        prompts = folder / "prompts" / category / f"{name}.csv"
        if not prompts.is_file():
            left_out.append(f"{category}/{subcategory}")
            continue
        texts = {table_cell(row, "id", prompts, n): table_cell(row, "Prompt", prompts, n)
                 for n, row in table_rows(prompts)}  # fmt: skip
        by_source: dict[str, list[WordQuestion]] = {}
        for line, row in table_rows(file):
            source = table_cell(row, "source_id", file, line)
            if source not in texts:
                left_out.append(f"{name}_{source}")
                continue
            by_source.setdefault(source, []).append(_r2i_question(row, texts[source], file, line))
        tags = (category, f"{category}: {subcategory}")
        captions += [
            ChecklistCaption(f"{name}_{source}", texts[source], tags, tuple(questions))
            for source, questions in by_source.items()
        ]
    unique = list(dict.fromkeys(left_out))
    shown = ", ".join(unique[:6]) + (", ..." if len(unique) > 6 else "")
    notes = (f"Left out, for want of a prompt: {len(unique)} ({shown}).",) if unique else ()
    return Checklist("R2I-Bench", tuple(captions), notes)


def _r2i_question(
    row: Mapping[str, str | None], caption: str, file: Path, line: int
) -> WordQuestion:
    text, criteria, weight = (
        table_cell(row, name, file, line) for name in ("question", "evaluation_criteria", "weight")
    )
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise InputError(f"{file}, line {line}: the weight is {weight!r}; a number is expected")
    return replace(graded(text, criteria, caption), weight=value)
