"""DPG-Bench's questions and their score (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py).

Two deliberate differences: the published script leaves out the first row of its table, and its
scores of categories are those of the last cell of each image; here all rows and cells count.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gotr1_jax.errors import InputError
from gotr1_jax.io.reading import read_text

_COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


@dataclass(frozen=True)
class Proposition:
    """One question about an image.

    Attributes:
        number: its own.
        parents: numbers of the questions that must be answered with yes, else it scores 0.
        category: such as "entity - whole".
        question: in plain words; yes is right.
    """

    number: int
    parents: tuple[int, ...]
    category: str
    question: str

    @property
    def broad_category(self) -> str:
        """The category's first part: entity, attribute, relation, global or other."""
        return self.category.split("-")[0].strip()


def read_questions(path: Path) -> dict[str, tuple[Proposition, ...]]:
    """The questions of each item, in the table's order.

    InputError, naming the line, for a table that is not DPG-Bench's, for a question that occurs
    twice and for a parent that does not exist.
    """
    try:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        missing = [name for name in _COLUMNS if name not in (table.fieldnames or ())]
        if missing:
            raise InputError(
                f"{path} has no column {', '.join(missing)}; give DPG-Bench's dpg_bench.csv"
            )
        rows = [(row["item_id"], _proposition(row, path, table.line_num)) for row in table]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a table of questions: {error}") from error
    items: dict[str, dict[int, Proposition]] = {}
    for item, proposition in rows:
        known = items.setdefault(item, {})
        if proposition.number in known:
            raise InputError(f"{path}: {item} has two questions {proposition.number}")
        known[proposition.number] = proposition
    if not items:
        raise InputError(f"{path} holds no question")
    for item, known in items.items():
        unknown = {p for one in known.values() for p in one.parents} - known.keys()
        if unknown:
            raise InputError(f"{path}: {item} depends on question {min(unknown)}, which it lacks")
    return {item: tuple(known.values()) for item, known in items.items()}


def _proposition(row: Mapping[str, str | None], path: Path, line: int) -> Proposition:
    try:
        number = int(row["proposition_id"] or "")
        parents = [int(part) for part in (row["dependency"] or "").split(",")]
    except ValueError as error:
        raise InputError(f"{path}, line {line}: a number is expected: {error}") from error
    category = (row["tuple"] or "").split("(")[0].strip()
    question = (row["question_natural_language"] or "").strip()
    if not question or not category:
        raise InputError(f"{path}, line {line} has no question or no tuple")
    # 0 is no parent.
    return Proposition(number, tuple(p for p in parents if p), category, question)


def dependent_scores(
    propositions: Sequence[Proposition], yes: Mapping[int, bool]
) -> dict[int, float]:
    """1 for each question that is answered with yes and whose parents have a 1 too, else 0.

    In the table's order, so that a child's child of a failed parent fails as well.
    """
    scores = {p.number: float(yes[p.number]) for p in propositions}
    for proposition in propositions:
        if any(scores[parent] == 0 for parent in proposition.parents):
            scores[proposition.number] = 0.0
    return scores
