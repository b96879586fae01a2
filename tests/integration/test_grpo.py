"""The GRPO job from end to end: what it writes, exact resume, losses, broken updates."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from flax import nnx
from tiny import (
    SHAPES,
    Blind,
    Brightness,
    assert_equal_trees,
    compiled_once,
    grpo_values,
    host,
    interrupt_after,
    judge_by_brightness,
    record_saves,
    run_grpo,
    steady_metrics,
    write_shapes,
)
from tiny_checkpoints import write_tiny

from gotr1_jax.config import load_config
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.generation_config import read_generation_config, resolve_sampling
from gotr1_jax.generate.config import BUILT_IN, GenerateConfig
from gotr1_jax.generate.load_policy import load_policy_to_sample
from gotr1_jax.grpo import credit, setup
from gotr1_jax.grpo.config import EntropyConfig, GrpoConfig
from gotr1_jax.grpo.entropy import new_entropy_state
from gotr1_jax.grpo.trained_policy import find_adapters
from gotr1_jax.rewards import JudgeResult
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.samples import read_samples

TERMS = ("sem", "spa", "ri", "pi")
METRICS = {
    *(f"reward/{term}/{of}" for term in ("total", *TERMS) for of in ("mean", "std")),
    *("reward/frac_zero_std", "judge/failed_frac", "judge/seconds"),
    *(f"plan/{name}" for name in ("length", "truncated_frac", "parsed_frac", "boxes")),
    "plan/score_like_text",
    *("diversity/distinct_plans", "diversity/images"),
    *(
        f"policy/{name}/{modality}"
        for name in ("ratio_max", "clip_frac", "entropy", "logp_diff")
        for modality in ("text", "image")
    ),
    *("grad_norm", "lr", "samples_per_second"),
    *(f"time/{name}" for name in ("rollout", "reward", "update", "step")),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(autouse=True)
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this process are set already; every image earns something else."""
    judge_by_brightness(monkeypatch)


def credit_values(checkpoint: Path, root: Path) -> dict[str, Any]:
    """Of the job that others are resumed to equal: the longest way from scores to advantages."""
    values = grpo_values(checkpoint, root) | {"advantage": {"kind": "gdpo", "scope": "segment"}}
    values["evaluation"]["follow"] = True
    return values


@pytest.fixture(scope="module")
def finished(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[int, Any]]:
    """A whole run with adapters, and the states that it saved."""
    root = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        judge_by_brightness(patch)
        saved = record_saves(patch)
        assert run_grpo(credit_values(checkpoint, root)) == 0
    return root, saved


def test_run_directory(finished):
    root, saved = finished
    names = {path.name for path in root.iterdir()}
    assert names >= {
        "config.yaml", "metrics.jsonl", "checkpoints", "samples", "report.html", "summary.json",
        "model", "provenance.json",
    }  # fmt: skip
    assert not [name for name in names if "tmp" in name]
    # The model wants to be sampled as it was trained, also where that was a default.
    stored = load_config(GrpoConfig, root / "config.yaml").sampled
    assert read_generation_config(root / "model") == stored.or_else(BUILT_IN)
    sampled = resolve_sampling(GenerateConfig(root, prompt="a"), root / "model", BUILT_IN)
    assert sampled.sampling == SamplerConfig(8, 2.0)
    folders = {path.name for path in (root / "samples").iterdir()}
    followed = {"eval_before", "eval_step_000001", "eval_step_000002", "eval_after"}
    assert folders == {"step_000001", "step_000002", "step_000004"} | followed
    assert sorted(saved) == [2, 4]
    kept = {path.name for path in (root / "checkpoints").iterdir()}
    assert kept == {"step_000002", "step_000004"}
    page = (root / "report.html").read_text(encoding="utf-8")
    for record in read_samples(root / "samples" / "eval_before"):
        assert record.caption in page


def test_summary(finished):
    summary = json.loads((finished[0] / "summary.json").read_text())
    assert set(summary) >= {"before", "after", "total_gain_ci95", "steps", "seconds"}
    for when in ("before", "after"):
        assert set(summary[when]) == {"total", *TERMS}
        terms = [summary[when][term] for term in TERMS]
        assert summary[when]["total"] == pytest.approx(np.mean(terms), abs=1e-6)
    low, high = summary["total_gain_ci95"]
    gain = summary["after"]["total"] - summary["before"]["total"]
    assert low <= gain <= high and gain != 0
    assert summary["steps"] == 4 and summary["seconds"] > 0


def test_metrics(finished):
    lines = read_metrics(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert not METRICS - set(line), sorted(METRICS - set(line))
        assert all(np.isfinite(value) for value in line.values()), line
        # One update a rollout: it starts where the samples were drawn, to the bit.
        assert line["policy/ratio_max/text"] == 1.0 and line["policy/ratio_max/image"] == 1.0
        assert line["policy/clip_frac/text"] == line["policy/clip_frac/image"] == 0.0
        assert line["policy/logp_diff/text"] < 1e-4 and line["policy/logp_diff/image"] < 1e-4
        assert 0 < line["plan/length"] <= 8 and line["updates/skipped"] == 0
        assert line["grad_norm"] > 0
    # The cosine from 1e-2 over four updates.
    wanted = 1e-2 * (1 + np.cos(np.pi * np.arange(4) / 4)) / 2
    np.testing.assert_allclose([line["lr"] for line in lines], wanted, rtol=1e-5)
    # Plans are nearly uniform over the vocabulary, far above their target; images below theirs.
    text, image = (
        [line[f"policy/entropy_coefficient/{name}"] for line in lines] for name in ("text", "image")
    )
    assert text[0] == image[0] == 0 and text[1] < 0 < image[1]
    np.testing.assert_allclose(text[1], -1e-3, rtol=1e-3)


def test_samples_have_what_the_report_shows(finished):
    records = read_samples(finished[0] / "samples" / "step_000004")
    assert [(r.caption_index, r.sample_index) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one, two in (records[:2], records[2:]):
        assert one.caption == two.caption
        # Of two samples a term's advantages are one number and its opposite, but for the rounding
        # of scores that are nearly equal; where both terms agree, so does their sum.
        for value, terms in (("advantage", ("sem", "spa")), ("image_advantage", ("ri", "pi"))):
            first, second = getattr(one, value), getattr(two, value)
            assert first == pytest.approx(-second, rel=0.1, abs=0.05)
            more = sum(np.sign(one.scores[term] - two.scores[term]) for term in terms)
            assert abs(more) < 2 or np.sign(first) == np.sign(more)
    assert any(r.advantage != r.image_advantage for r in records)
    assert records[0].image.shape == (128, 128, 3)


def test_model_is_the_policy_with_merged_adapters(finished, checkpoint):
    parts = ("policy", "vq", "understanding")
    before = load_checkpoint(checkpoint, parts=parts)
    after = load_checkpoint(finished[0] / "model", parts=parts)
    assert after.config == before.config == SHAPES
    moved = jax.tree_util.tree_map_with_path(
        # Weights are stored as they are trained, in float32.
        lambda path, a, b: (jax.tree_util.keystr(path), bool((a != b).any())),
        before.policy, after.policy,
    )  # fmt: skip
    changed = {name for name, is_moved in _pairs(moved) if is_moved}
    assert changed and all(any(f"'{t}'" in c for t in ("q", "v", "down")) for c in changed), changed
    for part in ("vq", "understanding"):
        near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=0)  # noqa: E731
        jax.tree.map(near, host(getattr(before, part)), host(getattr(after, part)))


def test_a_finished_run_is_sampled_with_its_adapters_beside_the_weights(
    finished, checkpoint, tmp_path, capsys
):
    """Whatever the dtype of the activations; merged, where the checkpoint is gone."""
    root, saved = finished
    _, state = load_policy_to_sample(root / "model", "bfloat16")
    adapters = nnx.filter_state(state, nnx.LoRAParam)
    assert_equal_trees(host(adapters), saved[4].params)
    base = load_checkpoint(checkpoint, parts=("policy",)).policy
    assert_equal_trees(host(nnx.filter_state(state, nnx.Not(nnx.LoRAParam))), host(base))
    copy = shutil.copytree(root, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "step_000004")
    assert find_adapters(copy / "model") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "adapters merged" in line and "step 2, not 4" in line
    assert find_adapters(checkpoint) is None and not capsys.readouterr().err


def _pairs(tree: Any) -> list[tuple[str, bool]]:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, tuple) and len(x) == 2)


def test_interrupted_and_resumed_is_as_never_interrupted(
    finished, checkpoint, tmp_path, monkeypatch, capsys
):
    root, saved = finished
    values = credit_values(checkpoint, tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert run_grpo(values) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "gotr1: error: interrupted"
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3
    assert not (tmp_path / "run" / "summary.json").exists()

    again = record_saves(monkeypatch)
    assert run_grpo(values) == 0
    assert sorted(again) == [4]
    assert_equal_trees(again[4], saved[4])
    assert steady_metrics(tmp_path / "run") == steady_metrics(root)
    first, second = (json.loads((r / "summary.json").read_text()) for r in (root, tmp_path / "run"))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
    for one, two in zip(
        read_samples(root / "samples" / "step_000004"),
        read_samples(tmp_path / "run" / "samples" / "step_000004"),
        strict=True,
    ):
        np.testing.assert_array_equal(one.image, two.image)
        assert one.plan_text == two.plan_text

    # A finished run is not run over.
    assert run_grpo(values, "--resume", "never") == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_checkpoint_of_another_rank_vocabulary_or_dtype_is_refused(finished, tmp_path, capsys):
    """Where adapters are trained, the weights under them are held to as well."""
    root, _ = finished
    values = yaml.safe_load((root / "config.yaml").read_text())
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    decoder = replace(SHAPES.decoder, vocab_size=1500)
    larger = write_tiny(tmp_path / "larger", replace(SHAPES, decoder=decoder))
    for words, said in {
        ("--policy.lora.rank", "3"): (
            r"params/.*lora_a.* is float32 \((.*), 2\) in the checkpoint but float32 \(\1, 3\) "
            r"here \(and \d+ more"
        ),
        ("--policy.init", str(larger)): (
            r"frozen/.* is float32 \((1440, 32|32, 1440)\) in the checkpoint but "
            r"float32 \((1500, 32|32, 1500)\) here"
        ),
        ("--policy.param_dtype", "bfloat16"): (
            r"frozen/.* is float32 (\(.*\)) in the checkpoint but bfloat16 \1 here"
        ),
    }.items():
        assert run_grpo(values, *words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert f"was trained under other settings: {words[0][2:]} " in line
        assert run_grpo(values, *words, "--allow_changes", "true") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert f"checkpoint {root}/checkpoints/step_000004 does not fit" in line
        assert re.search(said, line), line
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == kept


def test_rewards_of_nothing_but_zeros_raise_an_alarm_and_no_nan(
    checkpoint, tmp_path, monkeypatch, capsys
):
    class Unmoved(Brightness):
        def judge(self, requests: Any) -> Any:
            return [JudgeResult(dict.fromkeys(self.terms, 0.0)) for _ in requests]

    monkeypatch.setattr(setup, "make_judge", lambda *_: Unmoved())
    saved = record_saves(monkeypatch)
    values = grpo_values(checkpoint, tmp_path / "run")
    values["reward"] |= {"alarm_steps": 2}
    assert run_grpo(values) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines if "alarm" in line] == [
        f"alarm: every reward of the last {steps} steps was 0" for steps in (2, 4)
    ]
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert line["reward/frac_zero_std"] == 1 and line["updates/skipped"] == 0
        assert all(np.isfinite(value) for value in line.values()), line
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(saved[4]))


def test_stopped_in_a_rollout_and_resumed_is_as_never_stopped(
    finished, checkpoint, tmp_path, monkeypatch, capsys
):
    root, saved = finished
    asked: list[int] = []

    class Telling(Brightness):
        def judge(self, requests: Any) -> Any:
            asked.append(len(requests))
            if len(asked) == 6:  # after the evaluation, and two steps with what is followed
                signal.raise_signal(signal.SIGTERM)
            return super().judge(requests)

    monkeypatch.setattr(setup, "make_judge", lambda *_: Telling())
    again = record_saves(monkeypatch)
    values = credit_values(checkpoint, tmp_path / "run")
    assert run_grpo(values) == 75
    assert "gotr1: stopped at step 3, which is saved" in capsys.readouterr().err
    assert run_grpo(values) == 0
    assert sorted(again) == [2, 3, 4]
    assert_equal_trees(again[4], saved[4])
    assert steady_metrics(tmp_path / "run") == steady_metrics(root)


def test_all_parameters_with_kl_resampling_and_two_updates(checkpoint, tmp_path, monkeypatch):
    # The judge of the shapes world sees nothing in a random image: groups without variance.
    monkeypatch.undo()
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    values = grpo_values(checkpoint, tmp_path / "run")
    values["policy"]["lora"] = None
    values["loss"] = {"kl": "k3", "kl_weight": 0.1, "kind": "gspo", "logp_mode": "conditional"}
    values["update"] = {"updates_per_rollout": 2, "micro_batch": 2, "resample_rounds": 1}
    values |= {"steps": 2, "samples_every": 2}
    assert run_grpo(values) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(lines) == 2
    for line in lines:
        assert np.isfinite(line["loss"])
        assert line["rollout/rounds"] == (2 if line["reward/frac_zero_std"] > 0 else 1)
        assert line["policy/kl/text"] > -1e-6 and line["policy/kl/image"] > -1e-6
        # Sampled with guidance, scored without: the sampler has recorded the latter too.
        assert line["policy/logp_diff/text"] < 1e-5 and line["policy/logp_diff/image"] < 1e-5
    assert (tmp_path / "run" / "report.html").is_file()
    before, after = (load_checkpoint(p).policy for p in (checkpoint, tmp_path / "run" / "model"))
    assert jax.tree.structure(before) == jax.tree.structure(after)


def test_bfloat16_weights_are_sampled_as_they_are_trained(checkpoint, tmp_path):
    """Adapters that move far, beside bfloat16 weights: merged into them, the sampler's
    log-probabilities are off by 1e-3 from the second step on."""
    values = grpo_values(checkpoint, tmp_path / "run")
    values["policy"] |= {"param_dtype": "bfloat16"}
    values["loss"] = {"logp_mode": "conditional"}
    values["optimizer"] = {"learning_rate": 5e-2, "schedule": "constant"}
    values |= {"steps": 3, "entropy": None}
    assert run_grpo(values) == 0
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        assert line["policy/logp_diff/text"] < 2e-5 and line["policy/logp_diff/image"] < 2e-5


def test_broken_updates_end_the_run(checkpoint, tmp_path, monkeypatch, capsys):
    honest = credit.sample_advantages

    def endless(*arguments: Any, **named: Any) -> Any:
        found = honest(*arguments, **named)
        return replace(found, advantages=jax.tree.map(lambda a: a * np.inf, found.advantages))

    monkeypatch.setattr(credit, "sample_advantages", endless)
    saved = record_saves(monkeypatch)
    values = grpo_values(checkpoint, tmp_path / "run")
    values["checkpoint"]["every"] = 1
    assert run_grpo(values) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the last 2 updates up to step 2 were not finite" in error
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["updates/skipped"] for line in lines] == [1, 2]
    assert not (tmp_path / "run" / "summary.json").exists()
    # The step before was saved with everything as it was, and the one that ended the run was not.
    assert list(saved) == [1] and int(saved[1].skipped) == 1
    assert all(not b.any() for p, b in _adapters(saved[1].params) if "lora_b" in p)
    assert not any(leaf.any() for leaf in jax.tree.leaves(saved[1].opt_state))
    entropy = EntropyConfig(**values["entropy"])
    assert_equal_trees(saved[1].entropy, host(new_entropy_state(entropy)))


def _adapters(params: Any) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def test_a_judge_that_fails_too_often_ends_the_run_with_a_checkpoint(
    checkpoint, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(setup, "make_judge", lambda *_: Blind())
    values = grpo_values(checkpoint, tmp_path / "run")
    values["reward"] |= {"failure_steps": 3}
    assert run_grpo(values) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "stopped at step 3, which is saved: the judge could not score 6 of 12 samples" in line
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if "3" in p.name]
    assert not (tmp_path / "run" / "summary.json").exists()
