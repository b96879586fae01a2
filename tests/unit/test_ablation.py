"""`gotr1 ablate` without training: which runs there are, resuming, what is compared."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from gotr1_jax import cli
from gotr1_jax.ablate import command as ablate
from gotr1_jax.ablate.compare import compare
from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.ablate.scores import load_scores
from gotr1_jax.config import load_config, to_yaml
from gotr1_jax.errors import InputError, Stopped
from gotr1_jax.grpo.config import GrpoConfig

BASE = {"run_dir": "unused", "steps": 3, "reward": {"rule": "sum"}}
VALUES: dict[str, Any] = {
    "run_dir": "unused",
    "seeds": [0, 5],
    "overrides": ["steps=4"],
    "variants": [
        {"name": "one", "title": "pi only", "overrides": ["reward.terms=[pi]"]},
        {"name": "two", "overrides": ["reward.rule=v2", "steps=2"]},
    ],
}


@pytest.fixture(autouse=True)
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this process may be in use already."""
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(BASE))
    return _write(tmp_path, {**VALUES, "base": str(base)})


def _write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Trainer:
    """In the place of training: notes what it was asked for and leaves what a run leaves."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.codes: dict[tuple[str, int], int] = {}

    def __call__(self, planned: ablate.PlannedRun, cache: Path, processes: ablate.Processes) -> int:
        key = planned.variant, planned.seed
        self.asked.append(key)
        planned.root.mkdir(parents=True, exist_ok=True)
        (planned.root / "config.yaml").write_text(to_yaml(planned.config))
        if code := self.codes.get(key, 0):
            return code
        gain = 0.25 if planned.variant == "one" else 0.0
        before = {"total": [0.0, 0.0], "pi": [0.0, 0.5]}
        after = {"total": [0.0, 0.0], "pi": [gain, 0.5 + gain + planned.seed / 10]}
        for name, values in (("eval_before", before), ("eval_after", after)):
            (planned.root / f"{name}.json").write_text(json.dumps(values))
        (planned.root / "summary.json").write_text(json.dumps({"seconds": 90.0}))
        return 0


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    fake = Trainer()
    monkeypatch.setattr(ablate, "train", fake)
    return fake


def _run(config: Path, *words: str) -> int:
    return cli.run(["ablate", "--config", str(config), "--out", str(config.parent / "o"), *words])


ALL = [("one", 0), ("two", 0), ("one", 5), ("two", 5)]


def test_runs_are_the_base_with_overrides(config: Path) -> None:
    runs = ablate.plan_runs(load_config(AblationConfig, config), Path("out"))
    assert [(r.variant, r.seed) for r in runs] == ALL
    one, two = runs[2].config, runs[1].config
    assert (one.steps, one.seed, list(one.reward.terms), one.reward.total) == (4, 5, ["pi"], "sum")
    assert (two.steps, two.seed, two.reward.total) == (2, 0, "v2")
    assert Path(one.run_dir) == runs[2].root == Path("out/one/seed_5")
    assert runs[2].arguments[:3] == ("train", "grpo", "--config")


def test_folders_and_overrides_are_taken_literally(config: Path) -> None:
    change = {"overrides": ["policy.template=a: {caption} #1", "captions.column=no"]}
    path = _write(config.parent, yaml.safe_load(config.read_text()) | change)
    runs = ablate.plan_runs(load_config(AblationConfig, path), Path("out #1: 'x'"))
    assert {run.config.policy.template for run in runs} == {"a: {caption} #1"}
    assert {run.config.captions.column for run in runs} == {"no"}
    assert Path(runs[0].config.run_dir) == Path("out #1: 'x'/one/seed_0")
    # What the process will be started with gives the same.
    words = list(runs[0].arguments[4:])
    assert load_config(GrpoConfig, runs[0].arguments[3], words) == runs[0].config


def test_watched_terms_are_compared_where_their_judges_are_the_same(
    config: Path, trainer: Trainer
) -> None:
    values = yaml.safe_load(config.read_text())
    values["overrides"] = [
        *values.get("overrides", []),
        "evaluation.judges={humans: {python: m:f}, taste: {python: m:g}, down: {python: m:h}}",
    ]
    path = _write(config.parent, values)
    runs = ablate.plan_runs(load_config(AblationConfig, path), config.parent / "o")
    for i, run in enumerate(runs):
        trainer(run, config.parent, None)
        for name, shift in (("eval_before", 0.0), ("eval_after", 0.5)):
            scores = json.loads((run.root / f"{name}.json").read_text())
            watched = {"humans": [0.1 * i + shift] * 2, "taste": [shift] * 2, "down": [None] * 2}
            (run.root / f"{name}.json").write_text(json.dumps({**scores, "watched": watched}))
    one, two = ([r for r in runs if r.variant == v] for v in ("one", "two"))
    other = replace(two[0].config.evaluation.judges["taste"], scale=2.0)
    judges = {**two[0].config.evaluation.judges, "taste": other}
    two = [
        replace(r, config=replace(r.config, evaluation=replace(r.config.evaluation, judges=judges)))
        for r in two
    ]
    terms = _compare(two, one)
    assert list(terms) == ["pi", "humans", "taste"] and terms["taste"].over_first is None
    assert terms["humans"].gain.mean == pytest.approx(0.5)
    assert terms["humans"].over_first.mean == pytest.approx(0.1)


def test_terms_of_other_sources_do_not_compare_and_win_rates_are_no_result(
    config: Path, trainer: Trainer
) -> None:
    values = yaml.safe_load(config.read_text())
    wins = "wins: {pairwise: {by: scores, of: pi}}"
    for variant, function in zip(values["variants"], "fg"):
        variant["overrides"] = [f"reward.terms={{pi: {{python: m:{function}}}, {wins}}}"]
    path = _write(config.parent, values)
    runs = ablate.plan_runs(load_config(AblationConfig, path), config.parent / "o")
    for run in runs:
        trainer(run, config.parent, None)
        for name in ("eval_before", "eval_after"):
            scores = json.loads((run.root / f"{name}.json").read_text())
            (run.root / f"{name}.json").write_text(json.dumps({**scores, "wins": [0.5, 0.5]}))
    one, two = ([r for r in runs if r.variant == v] for v in ("one", "two"))
    terms = _compare(two, one)
    assert list(terms) == ["pi"] and terms["pi"].over_first is None


def _compare(runs: list[ablate.PlannedRun], first: list[ablate.PlannedRun]) -> dict[str, Any]:
    groups = [next(iter(load_scores(group).values())) for group in (runs, first)]
    return dict(compare(*groups).terms)


def test_all_variants_are_trained_and_compared(config: Path, trainer: Trainer) -> None:
    assert _run(config) == 0
    assert trainer.asked == ALL
    out = config.parent / "o"
    one, two = json.loads((out / "ablation.json").read_text())["variants"]
    # Seeds 0 and 5: gains of the two captions are .25, .25 and .25, .75. A resample has one of the
    # seeds: the first in half of them, the second caption twice in an eighth.
    _is(one["terms"]["pi"], 0.25, 0.625, (0.375, 0.25, 0.75), None)
    # Against the first, by caption: -.25 and -.25.
    _is(two["terms"]["pi"], 0.25, 0.375, (0.125, 0.0, 0.5), (-0.25, -0.25, -0.25))
    shown = (one["title"], two["title"], one["seeds"], one["minutes"])
    assert shown == ("pi only", "two", [0, 5], 1.5)
    text = (out / "ablation.md").read_text()
    assert "| pi only | 0.625 [+0.250, +0.750] |" in text
    assert "| two | -0.250 [-0.250, -0.250] |\n" in text


def test_runs_at_the_same_time(
    config: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(config.parent, yaml.safe_load(config.read_text()) | {"at_once": 2})
    both = threading.Barrier(2, timeout=60)

    def train(planned: ablate.PlannedRun, cache: Path, processes: ablate.Processes) -> int:
        both.wait()  # no run gets further alone
        return trainer(planned, cache, processes)

    monkeypatch.setattr(ablate, "train", train)
    assert _run(config) == 0
    assert sorted(trainer.asked) == sorted(ALL)
    assert len(json.loads((config.parent / "o/ablation.json").read_text())["variants"]) == 2


def test_some_runs_are_trained_now_and_others_later(
    config: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(config, "--only", "two") == 0
    assert trainer.asked == [("two", 0), ("two", 5)]
    assert len(json.loads((config.parent / "o/ablation.json").read_text())["variants"]) == 1
    assert _run(config, "--only", "one,two") == 0
    assert trainer.asked == [("two", 0), ("two", 5), ("one", 0), ("one", 5)]
    assert len(json.loads((config.parent / "o/ablation.json").read_text())["variants"]) == 2
    assert _run(config, "--only", "one,none") == 2
    assert "--only 'none' names no run; known: one, two" in capsys.readouterr().err


def test_no_process_starts_after_a_stop() -> None:
    processes = ablate.Processes()
    sleep = partial(subprocess.Popen, [sys.executable, "-c", "import time; time.sleep(600)"])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(processes.run, sleep)
        while not processes._running and not running.done():
            time.sleep(0.01)
        processes.terminate()
        assert running.result() == -signal.SIGTERM
    assert processes.run(sleep) == Stopped.exit_code


def test_differences_are_of_the_seeds_that_both_have(config: Path, trainer: Trainer) -> None:
    trainer.codes[("two", 5)] = 1
    assert _run(config) == 1
    one, two = json.loads((config.parent / "o/ablation.json").read_text())["variants"]
    assert (one["seeds"], two["seeds"]) == ([0, 5], [0])
    # Of seed 0 alone; seed 5 gave the first variant .5 more of the second caption.
    _is(two["terms"]["pi"], 0.25, 0.25, (0.0, 0.0, 0.0), (-0.25, -0.25, -0.25))


def test_totals_of_equal_rewards_compare(config: Path, trainer: Trainer) -> None:
    values = yaml.safe_load(config.read_text())
    for variant in values["variants"]:
        variant["overrides"] = ["steps=4"]
    other = {"name": "other", "overrides": ["reward.total=v2"]}
    values["variants"].append(other)
    _write(config.parent, values | {"overrides": ["reward.terms=[pi]", "reward.total=sum"]})
    assert _run(config) == 0
    text = (config.parent / "o/ablation.json").read_text()
    terms = [list(variant["terms"]) for variant in json.loads(text)["variants"]]
    assert terms == [["total", "pi"], ["total", "pi"], ["pi"]]


def _is(term: Any, before: float, after: float, gain: Any, over_first: Any) -> None:
    assert (term["before"], term["after"]) == pytest.approx((before, after))
    for found, wanted in ((term["gain"], gain), (term["over_first"], over_first)):
        values = None if found is None else (found["mean"], found["low"], found["high"])
        assert values == (None if wanted is None else pytest.approx(wanted))


def test_an_ablation_of_which_no_run_succeeds(
    config: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.codes = dict.fromkeys(ALL, 1)
    assert _run(config) == 1
    assert "4 of 4 runs failed: one, seed 0" in capsys.readouterr().err
    assert "0 of 4 runs are finished" in (config.parent / "o/ablation.md").read_text()


def test_finished_runs_are_kept_and_others_go_on(
    config: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.codes = {("one", 5): 1}
    assert _run(config) == 1
    assert trainer.asked == ALL  # one that fails does not keep the others
    assert "1 of 4 runs failed: one, seed 5" in capsys.readouterr().err
    kept = (config.parent / "o/one/seed_0/eval_after.json").stat().st_mtime_ns
    trainer.asked, trainer.codes = [], {("one", 5): 75}
    assert _run(config) == 75  # told to stop
    assert trainer.asked == [("one", 5)]
    trainer.asked, trainer.codes = [], {}
    assert _run(config) == 0
    assert trainer.asked == [("one", 5)]
    assert (config.parent / "o/one/seed_0/eval_after.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("eval_before.json", None, "eval_before.json cannot be read"),
        ("eval_after.json", '{"total": [0.0', "eval_after.json is not JSON"),
        ("eval_after.json", '{"total": [0.0], "pi": [0.5]}', "has 1 captions, and"),
        ("eval_before.json", '{"total": ["a", 0.0]}', "score of total that is 'a'"),
        ("summary.json", "[]", "summary.json is not a JSON object"),
        ("summary.json", '{"seconds": "long"}', "summary.json has no seconds"),
        ("summary.json", "[" * 100_000, "nested more than"),
    ],
)
def test_a_damaged_finished_run_is_told_before_others_are_trained(
    file: str, text: str | None, message: str, config: Path, trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert _run(config) == 0
    (config.parent / "o/two/seed_5/summary.json").unlink()  # is still to be trained
    damaged = config.parent / "o/one/seed_5" / file
    damaged.unlink() if text is None else damaged.write_text(text)
    trainer.asked = []
    assert _run(config) == 2 and trainer.asked == []
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and "remove its directory to train it again" in line


def test_a_table_is_there_while_runs_are_missing(config: Path, trainer: Trainer) -> None:
    trainer.codes = {("one", 5): 75}
    assert _run(config) == 75
    found = json.loads((config.parent / "o/ablation.json").read_text())["variants"]
    assert [v["seeds"] for v in found] == [[0], [0]]


def test_runs_of_another_configuration_are_refused(
    config: Path, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(config) == 0
    values = yaml.safe_load(config.read_text())
    trainer.asked = []
    assert _run(_write(config.parent, {**values, "overrides": ["steps=5"]})) == 2
    error = capsys.readouterr().err
    assert "seed_0 holds a run of another configuration" in error and error.count("\n") == 1
    assert trainer.asked == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variants": []}, "variants and seeds hold too little"),
        ({"seeds": []}, "at least one of each"),
        ({"seeds": [1, 1]}, "seeds holds 1 twice"),
        ({"seeds": [-1]}, "seeds.0. is -1"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants holds 'a' twice"),
        ({"variants": [{"name": "A b"}]}, "'A b' becomes a folder"),
        (
            {"variants": [{"name": "a", "overrides": ["reward.totl=v2"]}]},
            "variant 'a'.*reward.total",
        ),
        (
            {"variants": [{"name": "a", "overrides": ["steps"]}]},
            "variant 'a' holds 'steps'; write",
        ),
        ({"variants": [{"name": "a", "base": "no.yaml"}]}, "variant 'a'.*no.yaml"),
        ({"overrides": ["seed=3"]}, "seeds and folders are the ablation's own"),
        ({"overrides": ["steps 3"]}, "overrides holds 'steps 3'; write key=value"),
        ({"variant": []}, "did you mean 'variants'"),
    ],
)
def test_bad_configurations(config: Path, change: dict[str, Any], message: str) -> None:
    path = _write(config.parent, yaml.safe_load(config.read_text()) | change)
    with pytest.raises(InputError, match=message):
        ablate.plan_runs(load_config(AblationConfig, path), Path("out"))


def test_a_run_is_a_process_with_its_words_in_a_file(tmp_path: Path) -> None:
    for words, code, said in ((("--version",), 0, "gotr1"), (("no",), 2, "invalid choice")):
        planned = ablate.PlannedRun(
            "a", "a", 0, tmp_path / words[0], words, GrpoConfig(run_dir="a")
        )
        assert ablate.train(planned, tmp_path / "cache") == code
        assert said in (planned.root / "train.log").read_text()


def test_a_folder_that_cannot_be_made_is_one_line(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "o").write_text("in the way")
    assert _run(config) == 2
    assert "is a file; choose" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_missing_function_is_told_before_the_first_run(
    config: Path, trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that is finished it is not needed."""
    values = yaml.safe_load(config.read_text())
    (tmp_path / "mine.py").write_text("def f(requests):\n    return [0.0] * len(requests)\n")
    values["variants"][0]["overrides"].append(f"reward={tmp_path}/mine.py:g")
    words = ["ablate", "--config", str(_write(tmp_path, values)), "--out", str(tmp_path / "out")]
    assert cli.run(words) == 2 and trainer.asked == []
    assert "variant 'one': " in (error := capsys.readouterr().err)
    assert f"{tmp_path}/mine.py has no function g" in error
    (tmp_path / "mine.py").write_text("g = sum\n")
    assert cli.run(words) == 0 and len(trainer.asked) == 4
    (tmp_path / "mine.py").unlink()
    assert cli.run(words) == 0
