"""The table and the plot of an ablation."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

from gotr1_jax.ablate.report import plot, table
from gotr1_jax.ablate.results import Change, TermResult, VariantResult


def _result(title: str, **terms: tuple[float, float, float, float]) -> VariantResult:
    results = {
        name: TermResult(before, after, Change(after - before, low, high))
        for name, (before, after, low, high) in terms.items()
    }
    return VariantResult(title, title, (0,), 30, 128, 4, 2.0, results)


RESULTS = [
    _result("up & down", sem=(0.5, 0.75, 0.1, 0.4), pi=(0.5, 0.25, -0.3, -0.2)),
    _result("level", sem=(0.5, 0.5, -0.1, 0.1), pi=(0.5, 0.5, -0.1, 0.1)),
    _result("elsewhere", pi=(0.25, 0.5, 0.1, 0.9)),
]


def test_the_table_has_a_row_for_each_start() -> None:
    rows = [line.split(" | ") for line in table(RESULTS).splitlines() if line.startswith("|")]
    assert [row[0].strip("| ") for row in rows] == [
        "trained on", "-", "*start*", "up & down", "level", "*start*", "elsewhere",
    ]  # fmt: skip
    assert rows[2][1:3] == ["0.500", "0.500"] and rows[5][1:3] == ["–", "0.250"]
    assert rows[3][2] == "0.250 [-0.300, -0.200]" and rows[6][1] == "–"
    assert len({len(row) for row in rows}) == 1


def test_the_plot_by_hand() -> None:
    tree = ElementTree.fromstring(plot(RESULTS))
    name = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in tree.iter(f"{name}text")]
    assert {"up & down", "level", "elsewhere", "sem", "pi"} <= set(texts)
    panels = [g for g in tree.findall(f"{name}g") if g.findall(f"{name}g")]
    marks = [[mark for mark in panel.findall(f"{name}g")] for panel in panels]
    assert [len(panel) for panel in marks] == [2, 3]  # one was not scored by sem
    tones = [mark.findall(f"{name}circle")[1].get("class") for panel in marks for mark in panel]
    assert tones == ["better", "same", "worse", "same", "better"]
    # A panel is 128 wide: .25 and .5 are at 32 and 64; the interval ends at the edge.
    last = marks[1][2]
    assert [float(c.get("cx", "")) for c in last.findall(f"{name}circle")] == [32.0, 64.0]
    line = last.find(f"{name}line")
    assert line is not None and line.get("x2") == "128.0"
    assert np.isclose(float(line.get("x1", "")), 128 * 0.35, atol=0.05)


def test_long_titles_and_few_panels_have_room() -> None:
    title = "sampler up to 2 steps behind, TIS"
    tree = ElementTree.fromstring(plot([_result(title, pi=(0.5, 0.75, 0.1, 0.4))]))
    panel = next(g.get("transform", "") for g in tree.iter("{http://www.w3.org/2000/svg}g"))
    assert int(panel[len("translate(") :].split()[0]) > 8 + 6.1 * len(title) + 10
    assert int(tree.get("width", "")) >= 650  # the line below
