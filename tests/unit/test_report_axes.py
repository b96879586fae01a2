"""Ticks of the charts' axes, and charts of several runs."""

from __future__ import annotations

import numpy as np
import pytest

from gotr1_jax.report.axes import nice_ticks, step_ticks
from gotr1_jax.report.charts import WIDTH, ChartSpec, build_chart, build_charts_of
from gotr1_jax.report.metrics import Metrics


@pytest.mark.parametrize(
    "low, high, ticks",
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (-3.0, 4.0, [-4.0, -2.0, 0.0, 2.0, 4.0]),
        (1.02, 1.98, [1.0, 1.25, 1.5, 1.75, 2.0]),
        (2.0, 2.0, [1.0, 1.5, 2.0, 2.5, 3.0]),
        (0.0, 0.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("values", "labels", "note"),
    [
        ([0.9352, 0.9368], ["0.9350", "0.9355", "0.9360", "0.9365", "0.9370"], ""),
        ([1e9, 1.8e9], ["1.0", "1.2", "1.4", "1.6", "1.8"], "×10⁹"),
        ([0.0, 4e-6], ["0", "1", "2", "3", "4"], "×10⁻⁶"),
        ([0.0, 15e3], ["0k", "5k", "10k", "15k"], ""),
        ([-2e6, 2e6], ["-2M", "-1M", "0M", "1M", "2M"], ""),
        ([2.3e9, 2.3e9 + 200], ["0", "50", "100", "150", "200"], "2.3e9 +"),
        ([-2.3e9, 40 - 2.3e9], ["0", "10", "20", "30", "40"], "-2.3e9 +"),
        ([2.0000001, 2.0000003], ["100", "150", "200", "250", "300"], "2 + ×10⁻⁹"),
    ],
)
def test_ticks_of_any_range_differ_and_are_short(
    values: list[float], labels: list[str], note: str
) -> None:
    chart = build_chart(
        ChartSpec("t", (("", "m"),)), Metrics(np.arange(2), {"m": np.array(values)})
    )
    assert chart is not None and [label for _, label in chart.y_ticks] == labels
    assert chart.y_note == note


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [(1, 60, [20, 40, 60]), (1, 3, [1, 2, 3]), (7, 7, [7]), (0, 9, [0, 3, 6, 9]),
     (990, 1010, [990, 995, 1000, 1005, 1010])],
)  # fmt: skip
def test_steps_have_few_round_ticks(low: int, high: int, steps: list[int]) -> None:
    assert step_ticks(low, high) == steps


def test_runs_of_one_chart_keep_their_own_steps_and_colours() -> None:
    spec = ChartSpec("t", (("plan", "p"), ("image", "i")))
    a = Metrics(np.array([0, 10]), {"p": np.array([0.0, 1.0]), "i": np.array([1.0, 1.0])})
    b = Metrics(np.array([0, 5, 20]), {"p": np.array([0.0, 2.0, 4.0])})
    chart = build_chart(spec, {"A": a, "B": b})
    assert chart is not None
    found = [(line.label, line.colour, line.dash, line.steps) for line in chart.lines]
    assert found == [
        ("A plan", 0, 0, (0, 10)), ("B plan", 1, 0, (0, 5, 20)), ("A image", 0, 1, (0, 10)),
    ]  # fmt: skip
    assert chart.lines[1].xs == (0.0, WIDTH / 4, WIDTH)  # the axis reaches as far as either
    assert chart.lines[1].raw_path.count("M") == 1  # steps of the other run are no gaps
    # No two lines of a chart look alike: what has more series than dashes becomes several charts.
    many = ChartSpec("m", tuple((name, "p") for name in "abcd"))
    assert [c.title for c in build_charts_of([many, spec], {"A": a, "B": b})] == [
        "m (1)",
        "m (2)",
        "t",
    ]
    assert [c.title for c in build_charts_of([many], a)] == ["m"]
