"""Resuming under other settings, on files with other content, from a named checkpoint."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from saved_trees import save_steps

from gotr1_jax.config import from_dict, to_yaml
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import CaptionsConfig, GrpoConfig, RewardConfig
from gotr1_jax.io.files import write_json_atomic
from gotr1_jax.rewards.judge_config import JudgeConfig
from gotr1_jax.rewards.multimodal.questions import QuestionsConfig
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.trainer.config import CheckpointConfig, OptimizerConfig
from gotr1_jax.trainer.resume import (
    check_inputs,
    check_settings,
    describe_texts,
    mark_followed,
    resolve_resume,
    run_of,
    setting_changes,
)
from gotr1_jax.trainer.run_dir import RunDir, store_config
from gotr1_jax.vq.config import VqTrainConfig


def stored(root: Path, config: Any) -> RunDir:
    root.mkdir(exist_ok=True)
    store_config(RunDir(root), to_yaml(config))
    return RunDir(root)


BASE = GrpoConfig(run_dir="run")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"seed": 1}, "seed 0 -> 1"),
        ({"optimizer": OptimizerConfig(learning_rate=2e-5)}, "optimizer.learning_rate 1e-05 -> 2e"),
        ({"captions": CaptionsConfig("other.txt")}, 'captions.source "shapes" -> "other.txt"'),
        ({"reward": RewardConfig(total="v2")}, 'reward.total "v1" -> "v2"'),
        (
            {"judge": JudgeConfig(questions=QuestionsConfig(max_objects=4))},
            "judge.questions.max_objects 8 -> 4",
        ),
        ({"evaluation": replace(BASE.evaluation, captions=3)}, "evaluation.captions 128 -> 3"),
    ],
)
def test_a_setting_that_changes_what_is_trained_is_refused(tmp_path, changed, said):
    run = stored(tmp_path, BASE)
    with pytest.raises(InputError) as error:
        check_settings(run, replace(BASE, **changed, steps=7))
    assert f"other settings: {said}" in str(error.value)
    assert "--allow-changes" in str(error.value) and "steps" not in str(error.value)
    changes = check_settings(run, replace(BASE, **changed, allow_changes=True))
    assert sorted(change.is_free for change in changes) == [False, True]


def test_a_setting_of_how_a_job_runs_may_change(tmp_path):
    run = stored(tmp_path, BASE)
    new = replace(
        BASE, run_dir="moved", steps=9, resume="never", samples_every=3,
        checkpoint=CheckpointConfig(every=3), mesh=replace(BASE.mesh, fsdp=2),
        rollout=replace(BASE.rollout, decode_batch=3),
        reward=replace(BASE.reward, failure_limit=0.5),
    )  # fmt: skip
    changes = check_settings(run, new)
    assert len(changes) == 8 and all(change.is_free for change in changes)
    assert str(changes[1]) == "steps 1000 -> 9"


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("rollout.refresh_every", "1", "4"),
        ("rollout.refresh_every", "4", "1"),
        ("rollout.async_steps", "0", "1"),
        ("entropy", "null", "{bound: 0.01}"),
        ("optimizer.kind", "adamw", "muon"),
    ],
)
def test_a_setting_that_a_checkpoint_has_no_arrays_for_is_always_refused(tmp_path, name, old, new):
    """At once, whatever is allowed; not where the run has nothing saved yet."""

    def config(value: str) -> GrpoConfig:
        words = [(name, value), ("allow_changes", "true"), ("loss.importance", "{}")]
        return from_dict(GrpoConfig, {"run_dir": "run"}, overrides=words)

    run = stored(tmp_path, config(old))
    with pytest.raises(InputError, match=f"hold other arrays than these settings need: {name} "):
        check_settings(run, config(new))
    assert [c.name for c in check_settings(run, config(new), has_checkpoint=False)] == [name]


def test_a_setting_that_arrays_do_not_depend_on_may_be_allowed(tmp_path):
    old, new = (
        from_dict(GrpoConfig, {"run_dir": "run", "rollout": {"refresh_every": every},
                  "entropy": {"bound": every / 1000}, "allow_changes": True})
        for every in (2, 4)
    )  # fmt: skip
    assert len(check_settings(stored(tmp_path, old), new)) == 2


@pytest.mark.parametrize("job", [GrpoConfig, SftConfig, VqTrainConfig])
def test_what_may_change_are_settings(job):
    waiting, seen = [job], set()
    while waiting:
        schema = waiting.pop()
        names = {field.name for field in fields(schema)}
        for base in schema.__mro__:
            assert set(vars(base).get("may_change", ())) <= names, schema
        seen.add(schema)
        for kind in get_type_hints(schema).values():
            parts = [kind, *get_args(kind)]
            waiting += [part for part in parts if is_dataclass(part) and part not in seen]
    assert len(seen) > 6


def test_long_values_differ_visibly():
    old, new = (replace(BASE, resume="x" * 200 + end) for end in "ab")
    (change,) = setting_changes(old, new)
    assert change.old != change.new and len(str(change)) < 300


def test_a_configuration_that_cannot_be_compared_is_refused(tmp_path, caplog):
    run = stored(tmp_path, BASE)
    run.config.write_text(yaml.safe_dump({"run_dir": "run", "of_another_job": 1}))
    with pytest.raises(InputError, match="cannot be compared.*of_another_job.*--allow-changes"):
        check_settings(run, BASE)
    assert check_settings(run, replace(BASE, allow_changes=True)) == []
    run.config.unlink()
    assert check_settings(run, BASE) == [] and "is missing" in caplog.text


def test_the_content_of_files_counts(tmp_path):
    run = stored(tmp_path, BASE)
    one, two = describe_texts(["a", "b"], "captions"), describe_texts(["a", "c"], "captions")
    assert check_inputs(run, {"captions.source": one}, False) == []  # an earlier version's
    write_json_atomic(run.inputs, {"captions.source": one})
    assert check_inputs(run, {"captions.source": one, "new": "x"}, False) == []
    with pytest.raises(InputError, match=f"captions.source {one} -> {two}"):
        check_inputs(run, {"captions.source": two}, False)
    assert len(check_inputs(run, {"captions.source": two}, True)) == 1
    run.inputs.write_text("[")
    assert check_inputs(run, {"captions.source": two}, False) == []


def test_a_path_is_followed_once(tmp_path, caplog):
    run = RunDir(tmp_path / "run")
    save_steps(run.checkpoints, 1, 2, 3)
    step = run.checkpoints / "step_000001"
    assert resolve_resume(str(step), run.root) == step and run_of(step).root == run.root
    mark_followed(run, str(step), 1)
    # Preempted since: the same command goes on with what was saved, step 1 need not be there.
    assert resolve_resume(str(step), run.root) == run.checkpoints
    save_steps(run.checkpoints, 4, keep=1)
    assert not step.exists() and resolve_resume(str(step), run.root) == run.checkpoints
    assert run_of(run.checkpoints).root == run.root
    mark_followed(run, "auto", 4)
    with pytest.raises(InputError, match="does not exist"):
        resolve_resume(str(step), run.root)
    # Another run's path, with checkpoints of one's own: a line says that they are used.
    save_steps(tmp_path / "other" / "checkpoints", 7)
    assert resolve_resume(str(tmp_path / "other"), run.root) == run.checkpoints
    assert "goes on from them: --resume" in caplog.text
