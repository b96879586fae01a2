"""The page of a run whose numbers are infinite, not a number, huge, or of another type."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import PageReader, record

from gotr1_jax.report.charts import ChartSpec, build_chart, format_decimals, format_signed
from gotr1_jax.report.metrics import Metrics
from gotr1_jax.report.page import write_report
from gotr1_jax.trainer.run_dir import create_run_dir
from gotr1_jax.trainer.samples import write_samples

INF, NAN = math.inf, math.nan
ODD = (NAN, INF, -INF, 1e308, -1e308, 5e-324, 1e16 + 2, 0.0)


def page_of(root: Path) -> str:
    text = write_report(root).read_text("utf-8")
    PageReader(text)  # parses
    return text


def broken_numbers(page: str) -> list[str]:
    """Attributes of shapes, styles and data that hold what is no number."""
    return re.findall(
        r'\b(?:[xydr]|[cr]?[xy][12]?|width|height|style|data-gain|data-lines|viewBox)="[^"]*'
        r"(?:\bnan\b|\binf\b|NaN|Infinity)[^\"]*\"",
        page,
    )


@pytest.mark.parametrize("first", ODD)
@pytest.mark.parametrize("second", ODD)
def test_charts_of_any_two_values(first: float, second: float) -> None:
    metrics = Metrics(np.array([1, 2, 3]), {"m": np.array([first, second, 0.5])})
    spec = ChartSpec("m", (("", "m"),), level=("target", 0.3))
    with np.errstate(all="raise", under="ignore"):
        chart = build_chart(spec, metrics)
    assert chart is not None and "nan" not in str(chart) and "inf" not in str(chart)
    json.dumps([line.values for line in chart.lines], allow_nan=False)
    alone = Metrics(np.array([1]), {"m": np.array([first])})
    assert build_chart(spec, alone) is None or math.isfinite(first)


def test_lengths_of_numbers() -> None:
    assert format_decimals(1e300) == "1.000e+300" and format_decimals(INF) == "–"
    assert format_signed(-1e300, 2) == "−1.00e+300" and format_signed(0.5) == "+0.500"
    assert format_signed(NAN) == "–"


def test_a_page_of_a_run_that_diverged(tmp_path: Path) -> None:
    run = create_run_dir(
        tmp_path / "run", "seed: 3\nentropy: {text_target: .nan}\n", may_exist=False
    )
    lines = [
        json.dumps({"step": i, "reward/total/mean": v, "loss <b>": v, "grad_norm": 1.0})
        for i, v in enumerate(ODD)
    ]
    for step in ("1e300", "NaN", "-Infinity", '"x"', "[1]", "null", str(2**70), "9" * 5000):
        lines.append(f'{{"step": {step}, "grad_norm": 1}}')
    lines += ["[" * 5000, "{}", '{"step": 9, "lr": {"a": 1}, "kl": null, "x": true}']
    run.metrics.write_text("\n".join(lines))
    for name, total in (("eval_before", 0.2), ("eval_after", INF)):
        odd = [
            record("a green cross", sample_index=i, total=t, advantage=t, scores={"sem": t})
            for i, t in enumerate((total, NAN, -INF, 1e300))
        ]
        folder = write_samples(run.samples, 99, odd)
        # As Python writes them; what the project writes has null instead.
        text = (folder / "samples.jsonl").read_text().replace("null", "Infinity")
        (folder / "samples.jsonl").write_text(text)
        folder.rename(run.samples / name)
    write_samples(run.samples, 3, [record(total=NAN), record(sample_index=1, total=-INF)])
    (run.samples / "step_²").mkdir()
    summary: dict[str, Any] = {
        "before": {"total": INF, "sem": NAN, "pi": "x", "<i>": 1e300, "spa": [1]},
        "after": {"total": NAN, "sem": -INF, "pi": None, "<i>": -1e300, "spa": {}},
        "total_gain_ci95": [NAN, INF], "steps": INF, "seconds": 1e300, "captions": 10**50,
    }  # fmt: skip
    run.summary.write_text(json.dumps(summary))
    page = page_of(run.root)
    assert broken_numbers(page) == []
    assert "<b>" not in re.findall(r"loss ..", page) and "loss &lt;b&gt;" in page
    assert "metrics.jsonl: 10 lines could not be read" in page
    assert max(map(len, re.findall(r"\d+", re.sub(r'"[^"]*"', "", page)))) < 60


@pytest.mark.parametrize(
    "key, value",
    [
        ("caption", 3), ("plan_text", None), ("caption_index", INF), ("sample_index", "0"),
        ("total", "high"), ("scores", [1]), ("scores", {"sem": {}}), ("image", "\0"),
        ("image", "../../../dev/zero"), ("planned", [{"name": 1, "box": [1, 2, 3, 4]}]),
        ("detections", [{"name": "x", "box": [INF, 2, 3, 4]}]), ("raw_answers", [1]),
    ],
)  # fmt: skip
def test_samples_of_other_types_are_named(tmp_path: Path, key: str, value: object) -> None:
    run = create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False)
    good, bad = (write_samples(run.samples, step, [record()]) for step in (1, 2))
    line = json.loads((bad / "samples.jsonl").read_text())
    (bad / "samples.jsonl").write_text(json.dumps(line | {key: value}))
    page = page_of(run.root)
    assert f"{bad.name} cannot be read" in page and f"step {good.name[-1]} \\u00b7 total" in page


@pytest.mark.parametrize(
    "content", ["[" * 9999, "NaN", "[]", "{" * 99, '{"steps": 1, "steps": 2}', "\0"]
)
def test_files_that_make_no_page_fail(tmp_path: Path, content: str) -> None:
    run = create_run_dir(tmp_path / "run", content, may_exist=False)
    write_samples(run.samples, 1, [record()])
    for path in (run.metrics, run.summary, run.root / "scores.jsonl"):
        path.write_text(content)
    assert "Not everything of this run could be read" in page_of(run.root)
