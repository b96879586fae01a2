"""The table of `gotr1 eval given_plans`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gotr1_jax.evaluation.facts import facts_lines
from gotr1_jax.evaluation.results import TABLE, ResultRow, store_results
from gotr1_jax.io.markdown import markdown_table

# Whose scores: of the policy's image of the true plan and of the plan with a moved box, of the
# true image through the tokenizer and back, and of the true image itself.
GENERATED, EDITED, RECONSTRUCTED, RENDERED = "generated", "edited", "reconstructed", "rendered"
TERMS = ("ri", "pi", "verdict")
NATS = "nats"
_IMAGES = {
    GENERATED: "by the policy, from the true plan",
    RECONSTRUCTED: "the true one, through the tokenizer",
    RENDERED: "the true one",
}
_EDITS = {
    "edited ri": "one box moved",
    "unedited ri": "the same plans as they were",
    "edited - unedited ri": "difference",
}
_NOTES = (
    "ri: mean IoU of planned and found boxes; pi: the caption is true of the image, in degrees; "
    "verdict: it is true as a whole. All by the exact judge, with 95 % bootstrap intervals over "
    "scenes. No image of these tokens can be expected above the true one through the tokenizer.",
    "nats: mean of -log p of a token of the true image, given caption, true plan and the true "
    "tokens before it; without guidance, at temperature 1. perplexity: exp(nats).",
    "A moved box keeps clear of the others and may contradict the caption, so only ri is "
    "compared: on the same scenes, the difference paired.",
)


@dataclass(frozen=True)
class SceneResult:
    """A scene; `scores[kind][term]`, by the names above. `edited` as in `PlannedScene`."""

    caption: str
    plan: str
    edited: str | None
    objects: int
    scores: Mapping[str, Mapping[str, float]]


def write_report(
    out: Path, head: Mapping[str, Any], results: Sequence[SceneResult]
) -> dict[str, dict[str, Any]]:
    """Write scores.md, scores.json and pictures.jsonl; print one line. Returns the scores."""
    counts = sorted({result.objects for result in results})
    groups = {n: [r for r in results if r.objects == n] for n in counts}
    scores = _rows(results)
    by_objects = {str(n): _rows(part) for n, part in groups.items()}
    parts = {"all": scores} | {f"{n} object{'s' * (n > 1)}": _rows(p) for n, p in groups.items()}
    notes = [*_NOTES, *facts_lines(head)]
    values = {
        "evaluation": "given_plans", **head, "scores": scores, "by_objects": by_objects,
        "notes": notes,
    }  # fmt: skip
    store_results(out, _page(parts, notes), values, list(_lines(results)))
    print(f"given plans: {_summary(scores)}; {out / TABLE}")
    return scores


def _rows(results: Sequence[SceneResult]) -> dict[str, dict[str, Any]]:
    """`ResultRow.to_json` of every number of these scenes, by its name."""

    def column(kind: str, term: str, of: Sequence[SceneResult] = results) -> np.ndarray:
        return np.array([result.scores[kind][term] for result in of], np.float64)

    columns = {f"{kind} {term}": column(kind, term) for kind in _IMAGES for term in TERMS}
    columns[NATS] = column(RECONSTRUCTED, NATS)
    moved = [result for result in results if EDITED in result.scores]
    if moved:
        edited, unedited = column(EDITED, "ri", moved), column(GENERATED, "ri", moved)
        columns |= zip(_EDITS, (edited, unedited, edited - unedited))
    rows = {}
    for name, values in columns.items():
        scorer = "the policy" if name == NATS else "exact judge"
        failed = int(np.isnan(values).sum())
        rows[name] = ResultRow(name, (values,), len(values), failed, scorer).to_json()
    return rows


def _page(parts: Mapping[str, Mapping[str, Mapping[str, Any]]], notes: Sequence[str]) -> str:
    """The Markdown page of the rows of all scenes, and of those of each number of objects."""
    table = []
    for scenes, rows in parts.items():
        for kind, image in _IMAGES.items():
            cells = [_interval(rows[f"{kind} {term}"]) for term in TERMS]
            nats = rows[NATS]
            shown = kind == GENERATED
            cells += [_interval(nats), _perplexity(nats)] if shown else ["", ""]
            table.append([scenes, str(nats["captions"]), image, *cells])
    head = ["scenes", "number", "image", *TERMS, "nats", "perplexity"]
    rows = parts["all"]
    edits = [
        [label, str(rows[name]["captions"]), _interval(rows[name])]
        for name, label in _EDITS.items()
        if name in rows
    ]
    pieces = [
        "# Images of given true plans: held-out scenes of the shapes world",
        markdown_table(head, table),
        *([markdown_table(["plans", "number", "ri"], edits)] if edits else []),
        *notes,
    ]
    return "\n\n".join(pieces) + "\n"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _perplexity(nats: Mapping[str, Any]) -> str:
    return f"{math.exp(min(nats['value'], 700)):.2f}"


def _summary(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """The means of all scenes in one line."""

    def means(kind: str) -> str:
        return ", ".join(f"{term} {scores[f'{kind} {term}']['value']:.3f}" for term in TERMS)

    nats = scores[NATS]
    text = (
        f"generated {means(GENERATED)}; through the tokenizer {means(RECONSTRUCTED)}; "
        f"{nats['value']:.3f} nats a token (perplexity {_perplexity(nats)})"
    )
    if "edited ri" in scores:
        edited, unedited = (scores[f"{k} ri"]["value"] for k in ("edited", "unedited"))
        text += f"; ri of edited plans {edited:.3f}, unedited {unedited:.3f}"
    return text


def _lines(results: Sequence[SceneResult]) -> Iterator[dict[str, Any]]:
    """A line an image that was drawn."""
    for index, result in enumerate(results):
        for kind, scores in result.scores.items():
            if kind == RENDERED:
                continue
            plan = result.edited if kind == EDITED else result.plan
            yield {
                "image": f"{kind}/{index:05d}", "caption": result.caption, "plan": plan,
                "objects": result.objects, "scores": scores,
            }  # fmt: skip
