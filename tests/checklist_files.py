"""Small made-up files in the formats of the checklists; no word of them is published."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

OWN = [
    {"id": "a", "prompt": "a red cat under a table", "tags": ["indoors"], "questions": [
        {"question": "Is the cat red?", "tags": ["color"], "weight": 3},
        {"question": "Is there a dog?", "answer": "no", "tags": ["absence"]}]},
    {"id": "b", "prompt": "a boat", "tags": ["outdoors"], "questions": [
        {"question": "Where is the boat?", "choices": ["on water", "on land", "None"],
         "answer": "on water", "tags": ["place"]}]},
]  # fmt: skip
UNIGENBENCH = [
    ("a blue ox writes a letter", ["Attribute - Color", "Action - Hand", "Style"],
     ["a blue ox", "writes a letter", ""]),
    ("no bird sits on the wall", ["Grammar - Negation"], ["no bird"]),
]  # fmt: skip
COREBENCH = {
    "R-XX-001": {"Main Class": "Reasoning", "Sub Class": "Made Up", "Prompt": "melted ice",
                 "Checklist": [{"question": "Is there water?", "tags": ["hypo_pos"]},
                               {"question": "Is there no ice?", "tags": ["hypo_neg", "hard"]}]},
    "R-XX-002": {"Main Class": "Reasoning", "Sub Class": "Made Up", "Prompt": "a lit lamp",
                 "Checklist": [{"question": "Is the lamp lit?", "tags": []}]},
}  # fmt: skip
SPATIAL = [
    {"id": "000001", "scene": "Farm", "prompt": "a hen left of a pail",
     "question_type": ["Object", "Position"], "answers": ["B", "A"],
     "questions": ["Which things?  Options: A: Hen, egg, B: Hen, pail, E: None",
                   "Where is the hen?  Options: A: Left of it, B: Right, or above, E: None"]}
]  # fmt: skip
R2I_PROMPTS = [("a frozen pond", "1"), ("a boiling pot", "2")]
R2I_QUESTIONS = [
    ("1", "1: ice. 0.5: some ice. 0: none.", "Is the pond frozen?", "9"),
    ("1", "1: cold. 0.5: cool. 0: warm.", "Does it look cold?", "1"),
    ("2", "1: steam. 0.5: little. 0: none.", "Is there steam?", "0"),
    ("2", "1: bubbles. 0.5: few. 0: none.", "Are there bubbles?", "4"),
]


def write_lines(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_table(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def write_unigenbench(path: Path, rows: Sequence[Any] = UNIGENBENCH) -> Path:
    cells = [
        (i, prompt, json.dumps({"Testpoints": points, "Testpoint Description": texts}))
        for i, (prompt, points, texts) in enumerate(rows)
    ]
    return write_table(path, ("index", "prompt_en", "sub_dims_en"), cells)


def write_r2i(folder: Path) -> Path:
    prompts = [(text, "a reference", "a point", "Causal", "X", i) for text, i in R2I_PROMPTS]
    head = ("Prompt", "Reference Caption", "Assessment Point", "Category", "Subcategory", "id")
    write_table(folder / "prompts" / "causal" / "causal_heat.csv", head, prompts)
    rows = [(s, criteria, n, q, w) for n, (s, criteria, q, w) in enumerate(R2I_QUESTIONS)]
    columns = ("source_id", "evaluation_criteria", "id", "question", "weight")
    write_table(folder / "evaluation" / "causal" / "heat_eval.csv", columns, rows)
    write_table(folder / "evaluation" / "causal" / "cold_eval.csv", columns, rows)
    return folder


def write_all(folder: Path) -> dict[str, Path]:
    """One file or folder of each format, by its name."""
    corebench = folder / "corebench"
    corebench.mkdir()
    (corebench / "R-XX.json").write_text(json.dumps(COREBENCH))
    return {
        "checklist": write_lines(folder / "own.jsonl", OWN),
        "UniGenBench": write_unigenbench(folder / "unigenbench.csv"),
        "R2I-Bench": write_r2i(folder / "r2i"),
        "T2I-CoReBench": corebench,
        "SpatialGenEval": write_lines(folder / "spatial.jsonl", SPATIAL),
    }
