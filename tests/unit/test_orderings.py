"""Claims about an ablation's variants, judges that are fooled, and the list of its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gotr1_jax import cli
from gotr1_jax.ablate import command as ablate
from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.ablate.results import Change, CheckResult, OrderingResult
from gotr1_jax.ablate.runs import add_minutes, count_start, took
from gotr1_jax.config import load_config, to_yaml
from gotr1_jax.errors import InputError
from gotr1_jax.trainer import bootstrap
from gotr1_jax.trainer.bootstrap import crossed_interval, mean_interval

EXACT = "evaluation.judges={exact_pi: {shapes: {score: pi}}}"
TAUGHT = "judge={kind: python, python: {function: m:f}, terms: [pi, ri]}"
VALUES: dict[str, Any] = {
    "run_dir": "unused",
    "seeds": [0, 1],
    "at_once": 2,
    "overrides": ["steps=4", EXACT, "judge.terms=[pi, ri]"],
    "conditions": [
        {"name": "exact", "title": "exact judge", "minutes": 2},
        {"name": "taught", "title": "taught judge", "overrides": [TAUGHT]},
    ],
    "variants": [
        {"name": "all", "overrides": ["reward.terms=[pi, ri]"]},
        {"name": "ri", "title": "ri alone", "overrides": ["reward.terms=[ri]", "steps=2"]},
        {
            "name": "long",
            "overrides": ["reward.terms=[pi, ri]", "steps=8"],
            "conditions": ["exact"],
            "minutes": 5,
        },
    ],
    "columns": ["exact_pi"],
    "orderings": [
        {"name": "both terms", "better": "all", "worse": "ri", "term": "exact_pi"},
        {"name": "ri destroys", "better": "start", "worse": "ri", "term": "exact_pi"},
        {"name": "longer", "better": "long", "worse": "all", "term": "exact_pi"},
    ],
    "checks": {"pi": "exact_pi"},
    "metrics": ["policy/entropy/image", "no/such"],
}
# Gain of exact_pi (a number a caption), and of the judge's own pi, by condition and variant.
GAINS = {
    ("exact", "all"): ([0.2, 0.4], [0.2, 0.4]),
    ("exact", "ri"): ([-0.3, -0.1], [-0.3, -0.1]),
    ("exact", "long"): ([0.1, 0.5], [0.1, 0.5]),
    ("taught", "all"): ([0.0, -0.2], [0.4, 0.4]),
    ("taught", "ri"): ([0.1, 0.1], [0.3, 0.3]),
}


@pytest.fixture(autouse=True)
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "m.py").write_text("def f(requests):\n    return []\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"run_dir": "unused", "steps": 3}))
    return _write(tmp_path)


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "orderings.yaml"
    path.write_text(yaml.safe_dump({**VALUES, "base": "base.yaml", **changes}))
    return path


def _train(planned: ablate.PlannedRun, *_: object) -> int:
    """What a run leaves; of another seed, another gain."""
    planned.root.mkdir(parents=True, exist_ok=True)
    (planned.root / "config.yaml").write_text(to_yaml(planned.config))
    exact, own = (np.asarray(gain) for gain in GAINS[planned.group])
    for name, gained in (("eval_before", 0.0), ("eval_after", 1.0)):
        pi = (0.5 + gained * own).tolist()
        watched = {"exact_pi": (0.5 + gained * exact).tolist()}
        values = {"total": pi, "pi": pi, "ri": [0.5, 0.5], "watched": watched}
        (planned.root / f"{name}.json").write_text(json.dumps(values))
    entropies = [{"step": i, "policy/entropy/image": 2.0 - i / 10} for i in range(1, 11)]
    lines = "".join(f"{json.dumps(line)}\n" for line in entropies)
    (planned.root / "metrics.jsonl").write_text(lines)
    (planned.root / "summary.json").write_text(json.dumps({"seconds": 90.0}))
    return 0


def _run(config: Path, *words: str) -> int:
    return cli.run(["ablate", "--config", str(config), "--out", "o", *words])


def test_every_variant_under_every_condition(config: Path) -> None:
    runs = ablate.plan_runs(load_config(AblationConfig, config), Path("o"))
    groups = [
        ("exact", "all"),
        ("exact", "ri"),
        ("exact", "long"),
        ("taught", "all"),
        ("taught", "ri"),
    ]
    assert [run.group for run in runs] == groups * 2
    assert runs[3].root == Path("o/taught/all/seed_0")
    assert (runs[3].config.judge.kind, runs[0].config.judge.kind) == ("python", "shapes")
    assert [run.config.steps for run in runs[:5]] == [4, 2, 8, 4, 2]  # a variant's own come last
    assert [run.stated_minutes for run in runs[:5]] == [2, 2, 5, None, None]


def test_claims_checks_and_metrics(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablate, "train", _train)
    assert _run(config) == 0
    found = json.loads(Path("o/ablation.json").read_text())
    claims = {(c["name"], c["condition"]): c["difference"] for c in found["orderings"]}
    # .2 - -.3 and .4 - -.1 of the captions; -(.1) of both under the taught judge.
    assert list(claims["both terms", "exact judge"].values()) == pytest.approx([0.5, 0.5, 0.5])
    assert list(claims["ri destroys", "exact judge"].values()) == pytest.approx([0.2, 0.1, 0.3])
    assert list(claims["ri destroys", "taught judge"].values()) == pytest.approx([-0.1] * 3)
    assert claims["longer", "taught judge"] is None
    text = Path("o/ablation.md").read_text()
    assert (
        "| both terms | exact_pi | holds: +0.500 [+0.500, +0.500] | does not hold: -0.200 [" in text
    )
    assert "| longer | exact_pi | not separated: +0.000 [-0.100, +0.100] | – |" in text
    # The judge that is trained on, beside the exact one; under the exact judge they are the same.
    assert "exact judge: all |" not in text.split("## Both judges")[1].split("## During")[0]
    assert "fooled: the check does not rise" in text and "both rise; the judge overstates" in text
    assert "| taught judge: all | pi (in the reward) | 0.500 to 0.900 | +0.400 [" in text
    # The first and the last tenth of ten steps; a metric that there is not is left out.
    assert "| policy/entropy/image | 1.9 (1.9 to 1.9) | 1 (1 to 1) |" in text
    assert "no/such" not in text
    assert "10 of 10 runs are finished; they took 0.0 hours in all" in text
    table = text.split("## taught judge")[0]
    assert table.startswith("## exact judge") and "| trained on | exact_pi | seeds |" in table
    assert "exact judge: ri alone" in Path("o/ablation.svg").read_text()
    assert "holds: +0.500" in capsys.readouterr().out


def test_a_claim_is_tested_where_both_are_finished(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(planned: ablate.PlannedRun, *_: object) -> int:
        return 1 if (*planned.group, planned.seed) == ("exact", "ri", 1) else _train(planned)

    monkeypatch.setattr(ablate, "train", train)
    assert _run(config) == 1
    found = json.loads(Path("o/ablation.json").read_text())["orderings"]
    assert found[0]["seeds"] == [0]
    assert "[+0.500, +0.500], one seed |" in Path("o/ablation.md").read_text()


def test_a_judge_that_is_fooled_with_one_seed(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate, "train", _train)
    assert cli.run(["ablate", "--config", str(_write(config.parent, seeds=[0])), "--out", "o"]) == 0
    text = Path("o/ablation.md").read_text()
    assert "fooled: the check does not rise, one seed |" in text


def test_the_plan(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(config, "--plan") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "exact, all, seed 0: 4 steps, to train, 2.0 min"
    assert lines[3] == "taught, all, seed 0: 4 steps, to train, minutes not known"
    # 2 seeds of 2 + 2 + 5 minutes, two at a time.
    assert lines[-1] == (
        "10 runs, 0 finished; 4 of unknown length, the others about 0.1 hours left with 2 at once"
    )
    assert not Path("o").exists()
    runs = ablate.plan_runs(load_config(AblationConfig, config), Path("o"))
    _train(runs[3])
    for minutes in (10.0, 2.0):  # of a second start
        count_start(runs[3])
        add_minutes(runs[3], minutes)
    assert _run(config, "--plan") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "taught, all, seed 0: 4 steps, finished in 12.0 min"
    assert lines[8] == "taught, all, seed 1: 4 steps, to train, 12.0 min"
    assert lines[9] == "taught, ri, seed 1: 2 steps, to train, 6.0 min"  # 3 minutes a step
    # What is finished counts for what is asked for, though it is not.
    assert _run(config, "--plan", "--only", "exact, taught/ri") == 0
    assert "taught, ri, seed 0: 2 steps, to train, 6.0 min" in capsys.readouterr().out
    assert _run(config, "--plan", "--only", "taught/long") == 2
    assert "--only 'taught/long' names no run; known: exact/long\n" in capsys.readouterr().err
    for text in ("{", '{"starts": 2, "minutes": [3.0]}'):  # not worth another training
        (runs[3].root / "minutes.json").write_text(text)
        assert _run(config, "--plan") == 0
        assert "taught, all, seed 0: 4 steps, finished\n" in capsys.readouterr().out
    (runs[3].root / "minutes.json").write_text('{"minutes": 3.0}')  # of earlier versions
    assert _run(config, "--plan") == 0
    assert "taught, all, seed 0: 4 steps, finished in 3.0 min\n" in capsys.readouterr().out


def test_the_time_of_a_killed_start_is_not_known(config: Path) -> None:
    run = ablate.plan_runs(load_config(AblationConfig, config), Path("o"))[0]
    assert took(run) is None
    count_start(run)
    add_minutes(run, 2.0)
    assert took(run) == 2.0
    count_start(run)  # killed
    count_start(run)
    add_minutes(run, 1.0)
    assert took(run) is None


def test_finished_runs_that_do_not_fit(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablate, "train", _train)
    assert _run(config) == 0
    folders = [Path("o/exact/ri/seed_1"), Path("o/exact/ri/seed_0")]
    values = {"total": [0.5], "pi": [0.5], "ri": [0.5], "watched": {"exact_pi": [0.5]}}
    for folder in folders:  # of one run first, then of all of its variant
        (folder / "eval_after.json").write_text(json.dumps(values))
        assert _run(config) == 2
        assert "eval_after.json has 1 captions, and " in capsys.readouterr().err
    for folder in folders:
        (folder / "eval_before.json").write_text(json.dumps(values))
    assert _run(config) == 2
    assert "eval_before.json has 1 captions, and o/exact/all" in capsys.readouterr().err
    (folders[0] / "config.yaml").write_text("")
    assert _run(config) == 2
    assert "o/exact/ri/seed_1/config.yaml: " in capsys.readouterr().err
    (folders[0] / "config.yaml").unlink()
    assert _run(config) == 2
    assert "seed_1 has a finished run without its config.yaml" in capsys.readouterr().err
    Path("file").write_text("")
    words = ["ablate", "--config", str(config), "--out", "file", "--plan"]
    assert cli.run(words) == 2
    assert "--out file is a file; choose a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.init=embedded_judge", "policy.init: .*describes a model of type"),
        ("policy.init=base.yaml", "policy.init: "),
        ("policy.init=.", "policy.init: "),
        ("judge={kind: qwen_vl, qwen_vl: {checkpoint: embedded}}", "judge.qwen_vl.checkpoint: "),
        ("policy.init=gs://bucket/run/model", ""),
        ("policy.init=org/name", ""),
    ],
)
def test_checkpoints_of_another_kind(override: str, message: str, config: Path) -> None:
    overrides = ["steps=4", EXACT, "judge.terms=[pi, ri]", override]
    less: dict[str, Any] = {"orderings": [], "conditions": []}
    path = _write(config.parent, overrides=overrides, variants=VALUES["variants"][:1], **less)
    planned = ablate.plan_runs(load_config(AblationConfig, path), Path("o"))[0]
    if message:
        with pytest.raises(InputError, match=message):
            ablate.check_inputs(planned)
    else:
        ablate.check_inputs(planned)


def test_what_a_fooled_judge_is() -> None:
    def finding(gain: float, check: float, noise: float) -> str:
        def around(mean: float, width: float) -> Change:
            return Change(mean, mean - width, mean + width)

        changes = (around(gain, 0.01), 0.5, 0.5 + check, around(check, noise))
        excess = around(gain - check, noise)
        return CheckResult("", "a", "pi", "exact", True, (0, 1), 0.5, 0.5 + gain, *changes,
                           excess).finding  # fmt: skip

    assert finding(0.0, 0.1, 0.05) == "the judge sees no gain"
    assert finding(0.1, 0.1, 0.05) == "both rise"
    assert finding(0.2, 0.1, 0.05) == "both rise; the judge overstates"
    assert finding(0.1, 0.0, 0.05) == "fooled: the check does not rise"
    assert finding(0.1, -0.1, 0.05) == "fooled: the check falls"
    # As much as the judge says lies in the noise of the check.
    assert finding(0.1, 0.05, 0.2) == finding(0.1, float("nan"), 0.2) == "not separated"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["exact_po"]}, "columns holds 'exact_po', which no variant's"),
        ({"checks": {"pi": "exact"}}, "checks holds 'exact', which no variant's"),
        (
            {"orderings": [{"name": "a", "better": "all", "worse": "ri", "term": "sem"}]},
            "'a' under 'exact': the evaluation of 'all' has no term 'sem'; choose from total, pi",
        ),
        (
            {"orderings": [{"name": "a", "better": "all", "worse": "ri", "term": "total"}]},
            "'total' of all and ri is scored by different judges or rewards",
        ),
        ({"conditions": [{"name": "start"}]}, "'start' means the policy before training"),
        (
            {"orderings": [{"name": "a", "better": "al", "worse": "ri", "term": "pi"}]},
            "'a' names 'al'; variants are: all, ri, long",
        ),
        (
            {"orderings": [{"name": "a", "better": "ri", "worse": "ri", "term": "pi"}]},
            "worse is 'ri', as better is",
        ),
        ({"orderings": VALUES["orderings"][:1] * 2}, "orderings holds .* twice"),
        ({"checks": {"pi": "pi"}}, "'pi' is checked by itself"),
        (
            {"conditions": [{"name": "exact", "title": "a"}, {"name": "b", "title": "a"}]},
            "titles of conditions holds 'a' twice",
        ),
        (
            {"conditions": [*VALUES["conditions"], {"name": "ri"}]},
            "conditions and variants holds 'ri' twice",
        ),
        (
            {
                "variants": [
                    *VALUES["variants"],
                    {"name": "late", "conditions": ["taught"]},
                ],
                "orderings": [{"name": "a", "better": "long", "worse": "late", "term": "pi"}],
            },
            "'a' compares long and late, which no condition has both",
        ),
        ({"conditions": []}, "'long' names 'exact'; conditions are: none is given"),
        (
            {"overrides": ["steps=4", EXACT, "policy.init=runs/no/model"]},
            "policy.init is runs/no/model, which is not there; make it first",
        ),
        (
            {
                "overrides": [EXACT],
                "variants": [
                    *VALUES["variants"],
                    {
                        "name": "qwen",
                        "conditions": ["exact"],
                        "overrides": ["judge={kind: qwen_vl, qwen_vl: {checkpoint: runs/a/m}}"],
                    },
                ],
            },
            "variant 'qwen': judge.qwen_vl.checkpoint is runs/a/m, which is not there",
        ),
    ],
)
def test_mistakes_are_told_before_the_first_run(
    changes: dict[str, Any], message: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablate, "train", lambda *_: pytest.fail("trained"))
    options = cli.build_parser().parse_args(
        ["ablate", "--config", str(_write(config.parent, **changes))]
    )
    with pytest.raises(InputError, match=message):
        ablate.run(options)


def test_findings_by_the_interval() -> None:
    def finding(low: float, high: float) -> str:
        difference = Change((low + high) / 2, low, high)
        return OrderingResult("a", "pi", "b", "c", "", (0,), difference).finding

    assert finding(0.1, 0.2) == "holds" and finding(-0.2, -0.1) == "does not hold"
    assert finding(-0.1, 0.2) == finding(0.0, 0.2) == finding(float("nan"), float("nan"))
    assert finding(-0.1, 0.2) == "not separated"


def test_the_interval_over_seeds_and_captions_by_hand() -> None:
    # Three runs without any difference of captions: two of three are drawn, with replacement.
    # Both are the lowest in one of nine resamples, so the ends are the lowest and the highest.
    values_SP = np.repeat([[0.1], [0.2], [0.6]], 5, axis=1)
    assert crossed_interval(values_SP) == pytest.approx((0.1, 0.6))
    # The variance of the resampled means is that of a mean of three: s² / 3, here .07 / 3.
    values_SP = np.random.default_rng(1).normal(size=(1, 40))
    assert crossed_interval(values_SP) == mean_interval(values_SP[0])
    # Captions that one of the runs could not score are left out of all.
    values_SP = np.array([[0.1, np.nan, 0.3], [0.1, 9.0, 0.3]])
    assert crossed_interval(values_SP) == pytest.approx((0.1, 0.3))
    assert all(np.isnan(crossed_interval(np.full((2, 3), np.nan))))


def test_the_interval_covers_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 made-up pairs of variants that do not differ: the share of intervals that hold 0, of
    three seeds where captions make most of the noise, where training does, and all of it; then of
    five seeds."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 500)
    shares = []
    for seeds, training in ((3, 0.006), (3, 0.04), (3, 10.0), (5, 10.0)):
        rng, held = np.random.default_rng(0), 0
        for _ in range(300):
            noise_SP = rng.normal(0, training, (seeds, 1)) + rng.normal(0, 0.15, (seeds, 64))
            low, high = crossed_interval(noise_SP + rng.normal(0, 0.15, 64))
            held += low <= 0 <= high
        shares.append(held / 300)
    # Without other noise three seeds of one sign decide: a quarter of all pairs.
    assert shares == pytest.approx([0.987, 0.94, 0.75, 0.86], abs=0.05)
