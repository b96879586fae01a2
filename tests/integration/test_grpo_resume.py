"""`gotr1 train grpo` on a run that is there: other settings, another process, a lost judge."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import (
    Brightness,
    compiled_once,
    grpo_values,
    judge_by_brightness,
    run_grpo,
    write_shapes,
)

from gotr1_jax.errors import RunError
from gotr1_jax.grpo import setup
from gotr1_jax.io.lock import folder_lock
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.samples import read_samples


@pytest.fixture(autouse=True)
def quiet_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this process are set already; every image earns something else."""
    judge_by_brightness(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A whole run of two steps, with one plan for both samples of a caption."""
    with (
        compiled_once(tmp_path_factory.getbasetemp() / "programs"),
        pytest.MonkeyPatch.context() as patch,
    ):
        checkpoint = write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")
        root = tmp_path_factory.mktemp("finished") / "run"
        judge_by_brightness(patch)
        values = grpo_values(checkpoint, root) | {"steps": 2}
        values["rollout"] |= {"images_per_plan": 2}
        assert run_grpo(values) == 0
        yield root


def test_a_run_is_resumed_under_its_own_settings(finished, tmp_path, capsys, caplog):
    """Another number of held-out captions once ended in a traceback after all steps."""
    root = finished
    values = yaml.safe_load((root / "config.yaml").read_text())
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    words = ("--seed", "1", "--optimizer.learning_rate", "0.02", "--evaluation.captions", "4")
    assert run_grpo(values, *words, "--reward.rule", "v1", "--samples_every", "1") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for said in (
        "seed 0 -> 1", "learning_rate 0.01 -> 0.02", "captions 2 -> 4", 'total "sum" -> "v1"',
    ):  # fmt: skip
        assert said in line
    assert "samples_every" not in line
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == kept

    copy = tmp_path / "run"
    shutil.copytree(root, copy)
    values["run_dir"] = str(copy)
    shutil.rmtree(copy / "model")
    words = ("--evaluation.captions", "4", "--reward.rule", "v1", "--steps", "1")
    assert run_grpo(values, *words, "--allow_changes", "true") == 0
    out = capsys.readouterr().out
    assert 'changed since the run was started: reward.total "sum" -> "v1"' in out
    assert out.count("changed since the run was started: evaluation.source ") == 1
    assert "the model before training is evaluated again" in caplog.text
    summary = json.loads((copy / "summary.json").read_text())
    assert summary["captions"] == 4 and summary["steps"] == 2  # those that were run
    stored = [json.loads((copy / f"eval_{w}.json").read_text()) for w in ("before", "after")]
    assert stored[0]["measured_under"] == stored[1]["measured_under"]
    assert stored[0]["measured_under"]["reward"].startswith("v1 of")
    assert (copy / "model" / "config.json").is_file()
    # The settings before are kept; the new ones do not allow further changes.
    assert (copy / "config_until_step_000002.yaml").read_bytes() == kept[root / "config.yaml"]
    assert yaml.safe_load((copy / "config.yaml").read_text())["allow_changes"] is False


def test_samples_of_a_step_share_plans_and_those_of_an_evaluation_do_not(finished, capsys):
    """Row (caption * K + plan) * M + image, here with K = 1 and M = 2."""
    samples = read_samples(finished / "samples" / "step_000002")
    assert [s.sample_index for s in samples] == [0, 1] * (len(samples) // 2)
    for one, two in zip(samples[::2], samples[1::2]):
        assert one.caption == two.caption and one.plan_text == two.plan_text
        assert np.any(one.image != two.image) and one.scores != two.scores
    values = yaml.safe_load((finished / "config.yaml").read_text())
    assert run_grpo(values, "--rollout.images_per_plan", "1") == 2
    assert "images_per_plan 2 -> 1" in capsys.readouterr().err
    assert run_grpo(values, "--mesh.data", "4", "--run_dir", f"{finished}_4") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "plans sampled at once (rows / rollout.images_per_plan) is 2, which does not" in line


def test_the_model_is_there_where_the_comparison_fails(finished, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    shutil.rmtree(copy / "model")
    (copy / "summary.json").unlink()
    values = yaml.safe_load((copy / "config.yaml").read_text()) | {"run_dir": str(copy)}

    class Lost(Brightness):
        def judge(self, requests: Any) -> Any:
            raise RunError("the judge is gone")

    monkeypatch.setattr(setup, "make_judge", lambda *_: Lost())
    assert run_grpo(values) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "gotr1: error: the judge is gone"
    assert (copy / "model" / "config.json").is_file() and not (copy / "summary.json").exists()


def test_two_processes_do_not_share_a_run_directory(finished, capsys):
    root = finished
    values = yaml.safe_load((root / "config.yaml").read_text())
    kept = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with folder_lock(root, "run_dir"):
        assert run_grpo(values) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert f"run_dir {root} is in use by process {os.getpid()} on " in line
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == kept


OWN_LOSS = """
from gotr1_jax.grpo.losses import log_ratios, token_advantages, token_mean

def loss(batch, config, normalisers):
    loss_BN = -log_ratios(batch) * token_advantages(batch, config)
    value = token_mean(loss_BN, batch, config, normalisers)
    return value, {"mine/entropy": token_mean(batch.entropy_BN, batch, config, normalisers)}
"""


def test_a_loss_of_ones_own_names_its_metrics_and_an_edited_one_is_another(
    finished, tmp_path, capsys
):
    file = tmp_path / "my_own_losses.py"
    file.write_text(OWN_LOSS)
    values = yaml.safe_load((finished / "config.yaml").read_text())
    values |= {"run_dir": str(tmp_path / "run"), "steps": 1}
    values["loss"] |= {"kind": f"{file}:loss"}
    assert run_grpo(values) == 0
    (line,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert line["mine/entropy"] > 0 and "policy/clip_frac/text" not in line
    assert line["grad_norm"] > 0 and line["policy/ratio_max/image"] == 1
    capsys.readouterr()
    file.write_text(OWN_LOSS.replace("-log_ratios", "-2 * log_ratios"))
    assert run_grpo(values, "--steps", "2") == 2
    assert f"loss.kind {file}:loss " in capsys.readouterr().err.splitlines()[-1]
    # A name that the run has itself.
    file = tmp_path / "my_other_losses.py"
    file.write_text(OWN_LOSS.replace("mine/entropy", "lr"))
    values["loss"] |= {"kind": f"{file}:loss"}
    values["run_dir"] = str(tmp_path / "other")
    assert run_grpo(values) == 2
    assert "gives lr, which the run measures itself" in capsys.readouterr().err
