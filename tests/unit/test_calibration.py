"""A judge against labels: statistics by hand and against scipy, files, and the command."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from judge_server import Server, send
from PIL import Image

from gotr1_jax import cli
from gotr1_jax.rewards.calibration import statistics
from gotr1_jax.rewards.calibration.labels import read_labels
from gotr1_jax.rewards.calibration.measure import TermCalibration
from gotr1_jax.rewards.calibration.output import plot

NAN = math.nan
FILE = """
import numpy as np

calls = 0

def shade(requests):
    return [{"pi": float(r.image.mean()) / 255} for r in requests]

def moody(requests):
    global calls
    calls += 1
    return [{"pi": float(r.image.mean()) / 255 + 0.1 * (calls % 2)} for r in requests]

def constant(requests):
    return [{"pi": 0.5} for r in requests]

def nothing(requests):
    return [{"pi": float("nan")} for r in requests]

def best(requests):
    groups = {}
    for r in requests:
        groups.setdefault(r.group, []).append(r.image.mean())
    return [{"pi": float(r.image.mean() == max(groups[r.group]))} for r in requests]
best.group_wise = True
"""


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def test_correlations_by_hand_and_against_scipy() -> None:
    """Of 1 2 3 and 1 3 2: covariance 1/3, variances 2/3."""
    x, y = column(1, 2, 3), column(1, 3, 2)
    assert statistics.pearson(x, y) == pytest.approx(0.5)
    assert statistics.spearman(column(1, 10, 100), y) == pytest.approx(0.5)
    # Ranks 1.5 1.5 3 against 1 2 3: 0.5 * 1 + 0 + 1 over sqrt(1.5 * 2).
    assert statistics.spearman(column(5, 5, 7), column(1, 2, 3)) == pytest.approx(1.5 / 3**0.5)
    rng = np.random.default_rng(0)
    for scale in (1e-160, 1.0, 1e160):
        a, b = scale * rng.integers(0, 9, 40), rng.normal(size=40)
        assert statistics.pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a / scale, b)[0])
        assert statistics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])
    for constant in (column(2, 2, 2), column(0.1, 0.1, 0.1) * 3, column(1e9, 1e9, 1e9)):
        assert math.isnan(statistics.pearson(constant, y))
        assert math.isnan(statistics.spearman(y, constant))
    assert math.isnan(statistics.pearson(column(1, 2), column(1, 2)))


def test_what_group_means_leave() -> None:
    """Two captions, one liked: between them the judge is right, within them it is wrong."""
    groups = ["a"] * 3 + ["b"] * 3 + ["alone"]
    scores, labels = column(1, 2, 3, 11, 12, 13, 7), column(3, 2, 1, 23, 22, 21, 9)
    left = [statistics.less_group_means(values, groups) for values in (scores, labels)]
    np.testing.assert_allclose(left, [[-1, 0, 1, -1, 0, 1, 0], [1, 0, -1, 1, 0, -1, 0]])
    assert statistics.pearson(scores, labels) > 0.9
    assert statistics.pearson(*left) == pytest.approx(-1)
    # What differs between captions alone leaves nothing, not the noise of rounding.
    flat = statistics.less_group_means(column(0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.3) * 3, groups)
    assert not flat.any() and math.isnan(statistics.pearson(flat, left[1]))
    assert statistics.less_group_means(column(), []).shape == (0,)


def test_auc() -> None:
    """Of 2 positives and 3 negatives 6 pairs: 3 < 0.5, a tie and two wins; two wins, a tie..."""
    scores, positive = column(0.9, 0.5, 0.5, 0.4, 0.9), column(1, 1, 0, 0, 0)
    # 0.9 beats 0.5 and 0.4, ties with 0.9; 0.5 ties with 0.5, beats 0.4, loses to 0.9.
    assert statistics.auc(scores, positive) == pytest.approx((2.5 + 1.5) / 6)
    assert statistics.auc(-scores, positive) == pytest.approx(2 / 6)
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 5, 50).astype(float), rng.integers(0, 2, 50)
    first, second = scores[positive == 1], scores[positive == 0]
    u = scipy.stats.mannwhitneyu(first, second).statistic
    assert statistics.auc(scores, positive) == pytest.approx(u / len(first) / len(second))
    assert math.isnan(statistics.auc(scores, np.ones(50)))


def test_partial_correlation() -> None:
    """x = g + u, y = g - u with u orthogonal to g: -1 once g is taken out; as by the formula."""
    g, u = column(-1, -1, 1, 1), column(-1, 1, -1, 1)
    assert statistics.partial_correlation(g + u, g - u, g) == pytest.approx(-1)
    assert math.isnan(statistics.partial_correlation(3 * g, u, g))  # nothing is left of it
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(3, 30))
    xy, xz, yz = (np.corrcoef(*pair)[0, 1] for pair in ((x, y), (x, z), (y, z)))
    formula = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
    assert statistics.partial_correlation(x, y, z) == pytest.approx(formula)
    assert statistics.partial_correlation(x, y, np.ones(30)) == pytest.approx(xy)


def test_bins() -> None:
    """0.05 and 0.08 in the first, 1 in the last: (2 * |0.065 - 0.5| + |1 - 1|) / 3."""
    bins = statistics.reliability(column(0.05, 1.0, 0.08), column(0, 1, 1))
    assert [(b.samples, b.label) for b in bins] == [(2, 0.5), (1, 1.0)]
    assert (bins[0].low, bins[-1].high) == (0, 1)
    assert statistics.calibration_error(bins) == pytest.approx(2 * 0.435 / 3)
    wide = statistics.reliability(column(-4, 16), column(0, 1))
    assert [(b.low, b.high) for b in wide] == [(-4, -2), (14, 16)]
    assert statistics.reliability(column(), column()) == []


def test_intervals_draw_whole_captions() -> None:
    """Twenty captions of equal samples: as few independent values as there are captions."""
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(2, 20))
    single = statistics.with_interval(statistics.pearson, x, x + noise, range(20))
    assert single == statistics.with_interval(statistics.pearson, x, x + noise, range(20))
    assert single.low < single.value < single.high < 1
    copies = np.repeat(x, 8), np.repeat(x + noise, 8)
    groups = np.repeat(np.arange(20), 8).tolist()
    grouped = statistics.with_interval(statistics.pearson, *copies, groups)
    assert grouped.low == pytest.approx(single.low) and grouped.high == pytest.approx(single.high)
    alone = statistics.with_interval(statistics.pearson, *copies, range(160))
    assert alone.high - alone.low < (grouped.high - grouped.low) / 2
    flat = statistics.with_interval(statistics.pearson, x, np.ones(20), range(20))
    assert all(map(math.isnan, flat))


def test_repeated_answers() -> None:
    """Three rounds of two samples: of the first 1 of 3 pairs is equal, of the second all."""
    same, spread = statistics.agreement(np.array([[1.0, NAN], [1.0, NAN], [4.0, NAN]]))
    assert same == pytest.approx(4 / 6) and spread == pytest.approx(2**0.5)
    assert statistics.agreement(np.ones((2, 3))) == (1, 0)
    assert math.isnan(statistics.agreement(np.ones((1, 3)))[0])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight images, shades 0, 30, ... 210, and functions that judge them."""
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    module = f"shades_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(FILE)
    (tmp_path / "data").mkdir()
    for i in range(8):
        Image.new("RGB", (8, 8), (30 * i,) * 3).save(tmp_path / "data" / f"{i}.png")
    return tmp_path


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    path = folder / "data" / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def samples(*labels: float | None, **more: Any) -> list[dict[str, Any]]:
    return [
        {"image": f"{i}.png", "caption": f"caption {i // 2}" + " long" * i, "labels": {"pi": v}}
        | more
        for i, v in enumerate(labels)
    ]


def calibrate(folder: Path, path: Path, function: str, *words: str) -> int:
    module = next(folder.glob("shades_*.py")).stem
    kind = ["--judge.kind", "python", "--judge.terms", "[pi]"]
    judge = [*kind, "--judge.python.function", f"{module}:{function}"]
    return cli.run(["judge", "--calibrate", str(path), "--out", "result", *judge, *words])


def result() -> dict[str, Any]:
    return json.loads(Path("result/calibration.json").read_text())


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels that are the shades but for one: every figure, in all files."""
    labels = [30 * i / 255 for i in range(8)]
    path = write(folder, *samples(*labels[:7], None), {"thresholds": {"pi": 0.5}})
    assert calibrate(folder, path, "shade", "--repeats", "2", "--threshold", "pi=0.3") == 0
    found = result()
    term = found["terms"]["pi"]
    assert (found["samples"], found["rounds"], term["labelled"]) == (8, 2, 7)
    assert term["pearson"]["value"] == pytest.approx(1) and term["auc"]["value"] == 1
    assert term["threshold"] == 0.3  # of the command line, before the file's
    assert term["mean_error"] == pytest.approx(0, abs=1e-6) and term["same_answer"] == 1
    assert term["unscored"] == 0 and term["verbosity"]["caption"] is None  # no error to explain
    printed = capsys.readouterr().out
    assert "Pearson correlation | 1.000 [" in printed and "AUC | 1.000" in printed
    assert Path("result/calibration.md").read_text() in printed + "\n"
    assert Path("result/calibration.svg").read_text().count('class="sample"') == 7
    lines = [json.loads(t) for t in Path("result/samples.jsonl").read_text().splitlines()]
    assert lines[7]["labels"] == {"pi": None} and len(lines[1]["scores"]["pi"]) == 2


def test_answers_that_change_and_length(folder: Path) -> None:
    """Longer captions have lower labels than the judge's scores: verbosity bias."""
    labels = [30 * i / 255 - 0.02 * i + 0.1 * (i % 3) for i in range(8)]
    path = write(folder, *samples(*labels))
    assert calibrate(folder, path, "moody", "--repeats", "2") == 0
    term = result()["terms"]["pi"]
    assert term["same_answer"] == 0 and term["repeat_std"] == pytest.approx(0.05)
    assert term["verbosity"]["caption"] > 0.5 and term["verbosity"]["plan"] is None
    assert any("AUC needs a threshold" in note for note in term["notes"])


def test_pairs(folder: Path) -> None:
    """The brighter is better: agrees with two of three labels; a tie of people's is left out.
    For a group-wise judge the two of a pair are the group."""
    pair = {"caption": "a cat", "plans": ["one", "two"]}
    lines = [
        pair | {"images": ["0.png", "5.png"], "preferred": "b"},
        pair | {"images": ["6.png", "5.png"], "preferred": "a"},
        pair | {"images": ["1.png", "7.png"], "preferred": "a"},
        pair | {"images": ["1.png", "2.png"], "preferred": "tie"},
    ]
    path = write(folder, *lines)
    for function in ("shade", "best"):
        assert calibrate(folder, path, function) == 0
        term = result()["terms"]["pi"]
        assert term["pairs"] == 3 and term["pair_agreement"]["value"] == pytest.approx(2 / 3)
    assert term["labelled"] == 0 and result()["position_bias"] is None


def test_scores_of_another_judge_are_labels(folder: Path) -> None:
    """Terms that the judge does not give are left out; images may lie below the folder."""
    lines = [
        {
            "sample": f"step_000001/{i}", "caption": "a", "image": f"data/{i}.png",
            "plan_text": "p", "scores": {"pi": i % 2, "sem": 0.5}, "judge": "exact",
        }
        for i in range(8)
    ]  # fmt: skip
    path = write(folder, *lines)
    labels = read_labels(path)
    assert labels.required == frozenset() and len({s.sample.group for s in labels.samples}) == 1
    assert calibrate(folder, path, "shade") == 0
    assert list(result()["terms"]) == ["pi"]
    term = result()["terms"]["pi"]
    assert term["auc"]["value"] == pytest.approx(10 / 16)
    assert term["within"] == pytest.approx(term["pearson"])  # of a single group
    assert "| Pearson within groups |" in Path("result/calibration.md").read_text()


def test_what_is_not_defined_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(folder, write(folder, *samples(1, 1, 1)), "shade") == 0
    (term,) = result()["terms"].values()
    assert term["pearson"]["value"] is None and term["mean_error"] is not None
    assert term["notes"] == [
        "all labels are 1: correlations are not defined", "AUC is not defined: all labels are "
        "positive",
    ]  # fmt: skip
    assert calibrate(folder, write(folder, *samples(0, 1, 1)), "constant") == 0
    (term,) = result()["terms"].values()
    assert term["notes"] == ["all scores are 0.5: correlations are not defined"]
    assert term["auc"]["value"] == 0.5
    capsys.readouterr()
    assert calibrate(folder, write(folder, *samples(0, 1, 1)), "nothing") == 1
    assert "could not score any of 3 samples" in capsys.readouterr().err
    assert result()["terms"]["pi"]["unscored"] == 1


GOOD = {"image": "1.png", "caption": "a", "labels": {"pi": 1}}
PAIR = {"caption": "a", "images": ["1.png", "2.png"], "preferred": "a"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "labels.jsonl, line 4 is not JSON"),
        ({**GOOD, "image": "no.png"}, "line 4: there is no image .*data/no.png"),
        ({**GOOD, "labels": {"pi": "high"}}, "line 4: the labels of pi is 'high'; use a number"),
        ({**GOOD, "labels": {"pi": 1e300}}, "the labels of pi is '1e.300'; .* at most 1e.09"),
        ({**GOOD, "labels": {}}, "line 4 has no labels of terms"),
        ({"image": "1.png", "caption": "a"}, "line 4 has no scores of terms"),
        ({**GOOD, "caption": 3}, "line 4 has no caption, a text"),
        ({**GOOD, "labels": {"sem": 1}}, "hold sem, which the judge does not give; it gives pi"),
        ({**PAIR, "preferred": "c"}, "preferred is 'c'; use a, b or tie"),
        ({**PAIR, "images": ["1.png"]}, r"images is no list of two texts, \[a, b\]"),
        ({"thresholds": {"ri": 1}}, "a threshold is given for ri, which is not compared"),
    ],
)
def test_labels_that_cannot_be_used(
    folder: Path, line: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(folder, *samples(0, 0.5, 1))
    with open(path, "a") as file:
        file.write(line if isinstance(line, str) else json.dumps(line))
    assert calibrate(folder, path, "shade") == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert not Path("result").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--repeats", "0"], "--repeats is 0; use 1 to 100"),
        (["--threshold", "pi"], "write it as TERM=LABEL"),
        (["--threshold", "pi=nan"], "write it as TERM=LABEL"),
        (["--check", "x.py:f"], "--check tries a function and --calibrate a judge"),
        (["--input", "x"], "give --input .* or --calibrate .*, one of the two"),
    ],
)
def test_options_that_cannot_be(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(folder, write(folder, *samples(0, 0.5, 1)), "shade", *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert cli.run(["judge", "--input", "x", "--out", "o", "--repeats", "2"]) == 2
    assert "--repeats belongs to --calibrate" in capsys.readouterr().err
    assert cli.run(["judge", "--calibrate", "x"]) == 2
    assert "give --out, where to write" in capsys.readouterr().err


def test_an_image_that_is_none_is_known_before_the_first_question(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data" / "2.png").write_bytes(b"no image")
    assert calibrate(folder, write(folder, *samples(0, 1, 1)), "shade", "--batch", "1") == 2
    error = capsys.readouterr().err
    assert "2.png" in error and "calibrate 1/3" not in error


def test_too_few_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate(folder, write(folder, *samples(0, 1)), "shade") == 2
    assert "has 2 labelled samples and no pairs" in capsys.readouterr().err


def test_a_model_that_prefers_a_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that always names the second image: two orders make a tie of every pair, the table
    says so, and what a question costs."""

    def second(handler: Any, number: int, body: Any) -> None:
        assert [c["type"] for c in body["messages"][0]["content"]].count("image_url") == 2
        choice = {"message": {"content": '{"score": 2}'}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        send(handler, 200, json.dumps({"choices": [choice], "usage": usage}).encode())

    pair = {"caption": "a cat", "images": ["0.png", "5.png"], "preferred": "b"}
    path = write(folder, pair, pair | {"images": ["3.png", "1.png"], "preferred": "a"})
    with Server(second) as server:
        values = {
            "judge": {"kind": "http", "http": {"url": server.url, "model": "m"}, "terms": ["pi"]},
            "terms": {"pi": {"pairwise": {"by": "questions"}}},
        }
        (folder / "judge.yaml").write_text(json.dumps(values))
        words = ["--calibrate", str(path), "--out", "result", "--config", "judge.yaml"]
        assert cli.run(["judge", *words]) == 0
        assert len(server.bodies) == 4
    found = result()
    assert found["position_bias"] == 1 and found["terms"]["pi"]["pair_agreement"]["value"] == 0.5
    assert found["counts"] == {"questions": 4, "tokens_in": 400, "tokens_out": 28}
    printed = capsys.readouterr().out
    assert "100 tokens in and 7 out each" in printed and "position bias: 100.0%" in printed


def test_the_plot_of_one_term_has_room_for_its_legend() -> None:
    picture = plot([TermCalibration("t" * 60)], [[(0.5, 0.5)]])
    assert int(picture.partition('width="')[2].partition('"')[0]) >= 600
    assert "t" * 60 not in picture
