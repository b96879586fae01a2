"""The page of a run: what it shows of whole, partial and hostile runs, and its small sums."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import NAN, PLAN, PageReader, record, sample

from gotr1_jax.errors import InputError
from gotr1_jax.plan import Box
from gotr1_jax.report.cards import (
    AdvantageValue,
    build_card,
    plan_spans,
)
from gotr1_jax.report.charts import (
    HEIGHT,
    WIDTH,
    ChartSpec,
    bin_means,
    build_chart,
    format_value,
    smooth,
)
from gotr1_jax.report.galleries import held_out_gallery, training_gallery
from gotr1_jax.report.gallery import Item
from gotr1_jax.report.load import RunData, choose_evenly, load_run
from gotr1_jax.report.metrics import Metrics, read_metrics
from gotr1_jax.report.page import build_table, headline, write_report
from gotr1_jax.report.sections import build_charts
from gotr1_jax.report.terms import read_meanings
from gotr1_jax.rewards import published
from gotr1_jax.trainer.run_dir import create_run_dir
from gotr1_jax.trainer.samples import write_samples

SUMMARY = {
    "before": {"total": 0.2, "sem": 0.5, "pi": 0.4},
    "after": {"total": 0.3, "sem": 0.75, "pi": 0.3},
    "total_gain_ci95": [0.05, 0.15],
    "steps": 20,
    "seconds": 125.0,
}

NO_METRICS = Metrics(np.arange(0), {})


def metrics_text(steps: range) -> str:
    rows = [{"step": s, "reward/total/mean": s / 100, "policy/kl/text": None} for s in steps]
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run: metrics, samples of steps 0, 10 and 20, both evaluations, summary."""
    created = create_run_dir(tmp_path / "my_run", "seed: 3\n", may_exist=False)
    created.metrics.write_text(metrics_text(range(21)))
    for step in (0, 10, 20):
        write_samples(created.samples, step, [record(), record(sample_index=1, total=0.9)])
    for name, total in (("eval_before", 0.2), ("eval_after", 0.6)):
        folder = write_samples(created.samples, 99, [record("a green cross", total=total)])
        folder.rename(created.samples / name)
    created.summary.write_text(json.dumps(SUMMARY))
    return created.root


def read_page(run: Path) -> PageReader:
    return PageReader(write_report(run).read_text("utf-8"))


def test_whole_run_shows_table_pairs_curves_and_samples(run: Path) -> None:
    page = read_page(run)
    assert "my_run" in page.text
    assert "from 0.200 to 0.300 (+50 %); 95 % interval of the gain [+0.050, +0.150]" in page.text
    assert "time 2 min 5 s" in page.text
    assert [g["stages"] for g in page.data["galleries"]] == [
        ["after"],
        ["step 0", "step 10", "step 20"],
    ]
    (pair,) = page.items("held_out")
    columns = [(c["label"], c["fixed"], c["at"]) for c in pair["columns"]]
    assert columns == [("before", True, [0]), ("", False, [1])]
    assert [s["values"]["total"] for s in page.data["samples"][:2]] == [0.2, 0.6]
    groups = page.items("training")
    assert [(i["stage"], i["note"]) for i in groups] == [
        (k, f"step {10 * k} · total 0.700 on average, 0.500 to 0.900") for k in range(3)
    ]
    assert page.count("figure", "chart") == 1  # a metric that is always null has no chart
    # 2 samples in each of 3 steps and a pair, of 2 planned and 2 located boxes; alike images once.
    samples = page.data["samples"]
    assert len(samples) == 8 and len(page.data["images"]) == 1
    assert (
        {len(s["planned"]) for s in samples}
        == {len(s["judges"][0]["boxes"]) for s in samples}
        == {2}
    )
    assert [s["key"] for s in samples[:3]] == [
        "eval_before/00_00", "eval_after/00_00", "step_000000/00_01",
    ]  # fmt: skip
    assert "advantages" not in samples[0] and samples[2]["advantages"] == [
        ["advantage", "+1.00", 0.5]
    ]
    assert "red circle" in page.text and "left of" in page.text
    assert "<|obj_start|>" not in page.text
    assert "seed: 3" in page.text


def test_page_asks_for_nothing_outside_itself(run: Path) -> None:
    # The name of SVG's elements is no address.
    page = write_report(run).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    for tag, attributes in PageReader(page).tags:
        assert tag not in ("link", "iframe", "object", "img", "base")
        for name in {"src", "href"} & attributes.keys():
            assert (attributes[name] or "").startswith("data:image/")
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp", page)


def test_text_of_a_run_never_becomes_markup(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">&amp;"
    created = create_run_dir(tmp_path / "<b>run", f"note: '{bad}'\n", may_exist=False)
    hostile = record(
        bad,
        plan_text=f"<|obj_start|>{bad}<|obj_end|> <|box_start|>(1,2),(3,4)<|box_end|> \ud800",
        planned=((bad, Box(1, 2, 3, 4)),),
        detections=((bad, Box(1, 2, 3, 4)),),
        scores={bad: 0.5},
        rationale=bad,
    )
    write_samples(created.samples, 0, [hostile])
    created.metrics.write_text(json.dumps({"step": 1, bad: 1.0}) + "\n")
    page = read_page(created.root)
    assert [t for t, _ in page.tags].count("script") == 2  # the data and the program
    assert "img" not in {t for t, _ in page.tags}
    assert page.text.count(bad) >= 7  # caption, name, term, words, metric, box names, config
    assert page.data["samples"][0]["plan"][0][0] == bad


@pytest.mark.parametrize("missing", ["metrics.jsonl", "samples", "summary.json", "config.yaml"])
def test_run_without_one_of_its_parts_is_shown(run: Path, missing: str) -> None:
    (run / missing).rename(run.parent / "away")
    page = read_page(run)
    assert (page.count("figure", "chart") == 0) == (missing == "metrics.jsonl")
    assert (not page.data["samples"]) == (missing == "samples")
    assert (page.count("table", "terms") == 0) == (missing == "summary.json")
    assert ("not finished" in page.text) == (missing == "summary.json")


def test_what_cannot_be_read_is_left_out_and_named(run: Path) -> None:
    (run / "samples" / "step_000010" / "00_00.png").write_bytes(b"no image")
    (run / "summary.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 21, "rew')
    page = read_page(run)
    assert "metrics.jsonl: 2 lines could not be read" in page.text
    assert "summary.json is not JSON" in page.text
    assert "step_000010 cannot be read" in page.text
    assert len(page.items("training")) == 2


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run directory at"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="it has no config.yaml"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_without_evaluations_first_and_last_step_stand_side_by_side(run: Path) -> None:
    (run / "samples" / "eval_after").rename(run.parent / "away")
    write_samples(run / "samples", 20, [record("new"), record(sample_index=1), record(total=0.75)])
    assert held_out_gallery(load_run(run, 100)).items == ()  # first of a caption: sample 1
    write_samples(run / "samples", 20, [record("new"), record(total=0.75), record(sample_index=1)])
    gallery = held_out_gallery(load_run(run, 100))
    assert gallery.title == "The same captions at step 0 and step 20"
    totals = [(i.caption, [s.sample.record.total for s in i.shown]) for i in gallery.items]
    assert totals == [("a red circle", [0.5, 0.75])]


def test_metrics_keep_the_later_line_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "a": 1}\n{"step": 1, "a": 5, "b": true}\n{"step": 2, "a": 3}\n')
    problems: list[str] = []
    metrics = read_metrics(path, problems)
    assert problems == []
    assert metrics.steps.tolist() == [1, 2]
    assert {k: v.tolist() for k, v in metrics.values.items()} == {"a": [5.0, 3.0]}


def test_too_many_sampled_steps_are_thinned_evenly(run: Path) -> None:
    assert choose_evenly(5, 3) == [0, 2, 4]
    assert choose_evenly(11, 4) == [0, 3, 7, 10]
    assert choose_evenly(3, 0) == [0, 2]
    assert choose_evenly(1, 0) == [0]
    assert choose_evenly(0, 5) == []
    data = load_run(run, max_records=4)  # two samples a step: room for two steps
    assert list(data.steps) == [0, 20] and data.num_sampled_steps == 3


def test_table_compares_terms_on_one_scale() -> None:
    rows = build_table(SUMMARY)
    assert [(r.name, r.change, r.is_gain) for r in rows] == [
        ("total", "+0.100", True),
        ("sem", "+0.250", True),
        ("pi", "−0.100", False),
    ]
    assert (rows[1].before_at, rows[1].after_at) == (0.5, 0.75)
    above_one = build_table({"before": {"total": 0.5}, "after": {"total": 2.0}})
    assert (above_one[0].before_at, above_one[0].after_at) == (0.25, 1.0)
    assert build_table({"before": {"total": 1}}) == ()


def test_every_term_has_a_meaning_and_an_unknown_one_a_row() -> None:
    meanings = read_meanings(Path("no such file"), [])  # of a run of an earlier version
    assert tuple(meanings) == ("total", *published.MEANINGS)
    before, after = {"new": 0.5, "pi": 0}, {"pi": 1, "new": 0.5}
    rows = build_table({"before": before, "after": after}, meanings)
    assert [(row.name, bool(row.meaning)) for row in rows] == [("pi", True), ("new", False)]


def test_headline_holds_without_interval_and_with_unknown_totals() -> None:
    assert headline({"before": {"total": 0.0}, "after": {"total": 0.5}, "captions": 128}) == (
        "The total on 128 held-out captions went from 0.000 to 0.500."
    )
    assert headline({"before": {"total": None}, "after": {"total": 0.5}}) == (
        "The total on held-out captions went from – to 0.500."
    )
    assert headline({}) == ""


def test_smoothing_skips_unknown_values() -> None:
    values = np.array([1.0, 2.0, NAN, 6.0, NAN, NAN, NAN])
    # windows: [1 2], [1 2 -], [2 - 6], [- 6 -], [6 - -], [- - -], [- -]
    np.testing.assert_allclose(smooth(values, 1), [1.5, 1.5, 4.0, 6.0, 6.0, NAN, NAN])
    np.testing.assert_array_equal(smooth(values, 0), values)


def test_long_curves_become_means_of_bins() -> None:
    values = np.array([1.0, 3.0, NAN, 5.0, NAN, NAN])
    np.testing.assert_allclose(bin_means(values, 3), [2.0, 5.0, NAN])
    assert bin_means(values, 6) is values


def test_chart_places_points_and_breaks_at_gaps() -> None:
    steps = np.arange(5)
    metrics = Metrics(steps, {"m": np.array([0.0, 1.0, NAN, 0.5, NAN]), "e": np.full(5, NAN)})
    chart = build_chart(ChartSpec("t", (("a", "m"), ("b", "e")), covers=(0.0, 1.0)), metrics)
    assert chart is not None
    assert [line.label for line in chart.lines] == ["a"]
    quarter = WIDTH / 4
    path = f"M0.0 {HEIGHT:.1f}L{quarter:.1f} 0.0M{3 * quarter:.1f} {HEIGHT / 2:.1f}h.01"
    assert chart.lines[0].raw_path == path
    assert chart.lines[0].values == (0.0, 1.0, None, 0.5, None)
    assert [label for _, label in chart.y_ticks] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert build_chart(ChartSpec("t", (("", "e"),)), metrics) is None


def test_every_metric_is_shown_somewhere_once() -> None:
    names = ["reward/sem/mean", "reward/sem/std", "policy/kl/image", "loss/vq"]
    sections = build_charts(Metrics(np.arange(2), {n: np.ones(2) for n in names}), {})
    assert {s: [c.title for c in found] for s, found in sections.items()} == {
        "Rewards": ["sem"],
        "Policy and plans": ["KL to the reference"],
        "Other metrics": ["loss/vq"],
    }
    assert build_charts(Metrics(np.arange(0), {}), {}) == {}


def test_boxes_have_charts_where_any_were_planned() -> None:
    def titles(boxes: list[float]) -> list[str]:
        names = {"plan/boxes": boxes, "plan/parsed_frac": boxes, "plan/truncated_frac": [0, 1]}
        found = build_charts(
            Metrics(np.arange(2), {n: np.asarray(v, float) for n, v in names.items()}), {}
        )
        return [f"{c.title} {[line.label for line in c.lines]}" for c in found["Policy and plans"]]

    assert titles([0, 1]) == ["boxes in a plan ['']", "plans ['parsed', 'truncated']"]
    assert titles([0, 0]) == ["plans ['truncated']"]


def test_numbers_are_short() -> None:
    values = (0.12345, 12.345, 1234.5, 0.0, 2.5e-6, 3e7, NAN)
    texts = [format_value(v) for v in values]
    assert texts == ["0.123", "12.35", "1234", "0.000", "2.5e-6", "3.0e7", "–"]


def test_plan_objects_take_the_colors_of_their_boxes() -> None:
    text = f"see <|obj_start|>ghost<|obj_end|>, {PLAN}!"
    parts = [(p.text, p.color, p.box) for p in plan_spans(text)]
    assert parts == [
        ("see ", None, ""),
        ("ghost", None, ""),
        (", ", None, ""),
        ("red circle", 0, "(0,0)–(500,500)"),
        (" left of ", None, ""),
        ("blue square", 1, "(500,250)–(999,750)"),
        ("!", None, ""),
    ]


def test_card_draws_boxes_in_pixels_and_located_ones_in_their_partners_color() -> None:
    card = build_card(sample(image=np.zeros((100, 200, 3), np.uint8), advantage=-4.0))
    planned = [(b.x, b.y, b.width, b.height, b.color) for b in card.planned]
    assert planned == [(0, 0, 100, 50, 0), (100, 25, 99.8, 50, 1)]
    assert [(b.name, b.width, b.color) for b in card.own.detections] == [
        ("red circle", 80, 0),
        ("dog", 18, None),
    ]
    assert card.advantages == (AdvantageValue("advantage", "−4.00", -1.0),)
    parts = build_card(sample(advantage=1.0, image_advantage=-0.5)).advantages
    assert [(part.label, part.text, part.share) for part in parts] == [
        ("advantage: plan", "+1.00", 0.5),
        ("advantage: image", "−0.50", -0.25),
    ]
    assert [(term, own.text, own.share) for term, (own,) in card.scores.items()] == [
        ("total", "0.50", 0.5),
        ("sem", "1.00", 1.0),
        ("spa", "0.25", 0.25),
        ("ri", "–", 0.0),
    ]


def test_large_images_are_stored_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    card = build_card(sample(image=noise))
    assert card.image.startswith("data:image/jpeg;base64,") and len(card.image) < 120_000
    assert build_card(sample()).image.startswith("data:image/webp;base64,")


def test_groups_are_ordered_best_first_with_unknown_totals_last() -> None:
    samples = [sample(sample_index=i, total=t) for i, t in enumerate((0.2, NAN, 0.6))]
    samples.append(sample("another", caption_index=1))
    run = RunData("r", {}, "", NO_METRICS, (), (), {3: tuple(samples)}, 1, (), ())
    first, second = training_gallery(run).items
    assert (first.caption, second.caption) == ("a red circle", "another")
    assert [str(s.sample.record.total) for s in first.cards] == ["0.6", "0.2", "nan"]
    assert first.note == "step 3 · total 0.400 on average, 0.200 to 0.600"


def test_captions_are_followed_over_the_steps() -> None:
    before = [sample("a", total=0.1), sample("b", total=0.5), sample("a", total=0.2)]
    after = [sample("a", total=0.4), sample("a", total=0.9), sample("b", sample_index=1)]
    run = RunData("r", {}, "", NO_METRICS, tuple(before), tuple(after), {}, 0, (), ())
    run = replace(run, followed={2: (sample("a", total=0.3),), 10: (sample("b", total=0.6),)})
    gallery = held_out_gallery(run)
    assert gallery.stages == ("step 2", "step 10", "after")

    def totals(item: Item) -> list[list[float | None]]:
        return [[s and s.sample.record.total for s in column.samples] for column in item.columns]

    assert {i.caption: totals(i) for i in gallery.items[1:2]} == {
        "b": [[0.5, 0.5, 0.5], [None, 0.6, None]],
    }
    # Equal captions and numbers are told apart by their order.
    assert [totals(i) for i in gallery.items if i.caption == "a"] == [
        [[0.1, 0.1, 0.1], [0.3, None, 0.4]], [[0.2, 0.2, 0.2], [None, None, 0.9]],
    ]  # fmt: skip
    # One that was not there before has nothing to be compared with.
    assert totals(gallery.items[3]) == [[None, None, 0.5]]
    keys = [s.key for s in gallery.items[0].shown]
    assert keys[-2:] == ["eval_step_000002/00_00", "eval_after/00_00"]
