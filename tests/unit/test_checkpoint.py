"""Checkpoints: exact, counted only when whole, and clear about what is wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from saved_trees import META, data_files, flip_byte, make_tree, no_space, same, save_steps

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.trainer import manifest
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.manifest import MANIFEST_NAME, write_manifest
from gotr1_jax.trainer.resume import resolve_resume, restore_path


def test_restore_gives_back_every_bit_and_the_meta(tmp_path):
    checkpoints = save_steps(tmp_path, 1, 2)
    restored = checkpoints.restore(jax.eval_shape(make_tree))
    assert restored.step == 2 and restored.meta == META
    assert same(restored.tree, make_tree(2.0))
    assert same(checkpoints.restore(make_tree(), step=1).tree, make_tree(1.0))


def test_arrays_may_be_donated_while_they_are_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    overwrite = jax.jit(lambda a: a * 0 - 1, donate_argnums=0)
    array = jnp.arange(4_000_000, dtype=jnp.float32)
    checkpoints.save(1, {"a": array}, {})
    for _ in range(3):
        array = overwrite(array)
    checkpoints.close()
    tree = checkpoints.restore({"a": jax.ShapeDtypeStruct((4_000_000,), jnp.float32)}).tree
    np.testing.assert_array_equal(tree["a"], np.arange(4_000_000, dtype=np.float32))


def test_restore_follows_the_target_sharding(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    whole = np.arange(32, dtype=np.float32).reshape(8, 4)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": jax.device_put(whole, rows)}, {})
    columns = NamedSharding(mesh, PartitionSpec(None, "data"))
    target = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=columns)
    tree = checkpoints.restore({"a": target}).tree
    assert tree["a"].sharding == columns
    np.testing.assert_array_equal(tree["a"], whole)
    checkpoints.close()


@pytest.mark.parametrize("damage", ["flip", "gut", "missing", "hollow", "manifest"])
def test_damage_falls_back_to_the_newest_good_step_and_says_so(tmp_path, caplog, damage):
    checkpoints = save_steps(tmp_path, 1, 2, 3)
    folder = checkpoints.folder(3)
    victim = max(data_files(folder), key=lambda path: path.stat().st_size)
    if damage == "flip":
        flip_byte(victim)
    elif damage == "gut":
        victim.write_bytes(b"")
    elif damage == "missing":
        victim.unlink()
    elif damage == "hollow":
        shutil.rmtree(folder / "meta")
        shutil.rmtree(folder / "state")
        victim = folder
    else:
        victim = folder / manifest.MANIFEST_NAME
        victim.write_text("{")
    restored = Checkpoints(tmp_path).restore(make_tree())
    assert restored.step == 2 and same(restored.tree, make_tree(2.0))
    warning = next(r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    reasons = {"missing": " is missing", "hollow": "/.* is missing", "manifest": " cannot be read"}
    reason = reasons.get(damage, " was damaged")
    assert re.search(re.escape(str(victim)) + reason, warning)
    with pytest.raises(RunError, match=victim.name):
        Checkpoints(tmp_path).restore(make_tree(), step=3)


def test_no_good_step_is_an_error_and_no_step_is_none(tmp_path):
    assert Checkpoints(tmp_path / "none").latest_good() is None
    checkpoints = save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        flip_byte(data_files(checkpoints.folder(step))[0])
    with pytest.raises(RunError, match="no checkpoint .* is good"):
        checkpoints.restore(make_tree())


def test_a_step_without_manifest_does_not_count(tmp_path, caplog):
    checkpoints = save_steps(tmp_path, 1, 2)
    (checkpoints.folder(2) / manifest.MANIFEST_NAME).unlink()
    assert Checkpoints(tmp_path).latest_good() == 1
    assert "step_000002 was never finished" in caplog.text
    # The run that goes on writes step 2 again.
    checkpoints.save(2, make_tree(9.0), META)
    assert checkpoints.latest_good() == 2
    assert same(checkpoints.restore(make_tree()).tree, make_tree(9.0))
    checkpoints.close()


def test_a_run_killed_in_its_first_save_has_no_checkpoint_and_says_so(tmp_path, caplog):
    checkpoints = save_steps(tmp_path / "checkpoints", 1)
    (checkpoints.folder(1) / manifest.MANIFEST_NAME).unlink()
    assert checkpoints.latest_good() is None
    caplog.clear()
    assert resolve_resume("auto", tmp_path) is None
    assert "step_000001 was never finished" in caplog.text


def test_what_a_killed_save_left_is_cleared(tmp_path):
    (tmp_path / "step_000004.orbax-checkpoint-tmp-17" / "state").mkdir(parents=True)
    assert Checkpoints(tmp_path).latest_good() is None
    save_steps(tmp_path, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005"]


def test_what_does_not_fit_is_named_with_both_values(tmp_path):
    checkpoints = save_steps(tmp_path, 1)
    tree = make_tree()
    wrong_dtype = {**tree, "params": {"w": tree["params"]["w"].astype(jnp.float32)}}
    with pytest.raises(InputError, match=r"params/w is bfloat16 \(3, 4\).*but float32 \(3, 4\)"):
        checkpoints.restore(wrong_dtype)
    wrong_shape = {**tree, "params": {"w": jnp.zeros((4, 3), jnp.bfloat16)}}
    with pytest.raises(InputError, match=r"params/w is bfloat16 \(3, 4\).*but bfloat16 \(4, 3\)"):
        checkpoints.restore(wrong_shape)
    with pytest.raises(InputError, match=r"params/new is absent .* but float32 \(1,\)"):
        checkpoints.restore({**tree, "params": {**tree["params"], "new": jnp.zeros(1)}})
    with pytest.raises(InputError, match=r"opt/0 is int32 \(\) .* but absent here .*1 more"):
        checkpoints.restore({"params": tree["params"]})


def test_frozen_arrays_must_have_the_same_shapes_and_dtypes(tmp_path):
    """Adapters' own shapes do not depend on vocabulary and dtype of the weights under them."""

    def frozen(words: int, dtype: Any = jnp.float32) -> Any:
        return {"frozen": {"embed": jax.ShapeDtypeStruct((words, 2), dtype)}}

    with Checkpoints(tmp_path, frozen=frozen(5)) as checkpoints:
        checkpoints.save(1, make_tree(), META)
    assert same(checkpoints.restore(make_tree()).tree, make_tree())
    assert restore_path(tmp_path, make_tree(), frozen(5)).step == 1
    assert restore_path(tmp_path, make_tree()).step == 1  # not checked
    other = r"frozen/embed is float32 \(5, 2\) in the checkpoint but float32 \(6, 2\) here"
    with pytest.raises(InputError, match=other):
        restore_path(tmp_path / "step_000001", make_tree(), frozen(6))
    with pytest.raises(InputError, match=r"frozen/embed is float32 .* but bfloat16 \(5, 2\)"):
        restore_path(tmp_path, make_tree(), frozen(5, jnp.bfloat16))
    with pytest.raises(InputError, match=r"frozen/embed is float32 \(5, 2\) .* but absent here"):
        restore_path(tmp_path, make_tree(), {})
    # Checkpoints of version 0.1.0 call the record of the frozen arrays "beside".
    folder = tmp_path / "step_000001"
    record = folder / "meta" / "metadata"
    written = record.read_text("utf-8")
    assert written.count('"frozen": {') == 1
    record.write_text(written.replace('"frozen": {', '"beside": {'), "utf-8")
    (folder / MANIFEST_NAME).unlink()
    write_manifest(folder, 1, None)
    assert restore_path(tmp_path, make_tree(), frozen(5)).step == 1
    with pytest.raises(InputError, match=other):
        restore_path(folder, make_tree(), frozen(6))


def test_retention_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.4], start=1):
        checkpoints.save(step, make_tree(), META, score)
    checkpoints.close()
    assert checkpoints.steps() == [2, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step_00000{n}" for n in (2, 4, 5)]
    with pytest.raises(InputError, match="keep is 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_known_bad_step_takes_no_place_among_those_kept(tmp_path):
    save_steps(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path, keep=2)
    flip_byte(data_files(checkpoints.folder(2))[0])
    assert checkpoints.latest_good() == 1
    checkpoints.save(3, make_tree(), META)
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_last_good_step_is_never_deleted(tmp_path, monkeypatch, seed):
    """Saves that work and that fail, steps that rot, runs that start again, in any order."""
    rng = random.Random(seed)
    checkpoints, step, good, unseen = Checkpoints(tmp_path, keep=2), 0, set[int](), False
    for _ in range(20):
        action = rng.choice(["save", "save", "fail", "rot", "again"])
        if action == "rot" and len(good) > 1:
            rotten, unseen = max(good), True
            good.remove(rotten)
            flip_byte(data_files(checkpoints.folder(rotten))[0])
        elif action == "again":
            checkpoints.close()
            checkpoints, unseen = Checkpoints(tmp_path, keep=2), False
            step = checkpoints.latest_good() or 0
            checkpoints.drop_after(step)
        elif action in ("save", "fail"):
            step += 1
            with monkeypatch.context() as patched:
                if action == "fail":
                    patched.setattr(os, "fsync", no_space)
                checkpoints.save(step, make_tree(float(step)), META, score=rng.random())
                checkpoints.settle()
            if action == "save":
                checkpoints.check()
                before, good = good, {s for s in good if checkpoints.folder(s).exists()} | {step}
                # A step that rotted unseen takes a place; else two good ones stay.
                assert len(good) >= 2 or unseen or not before
            else:
                with pytest.raises(RunError, match="disk full"):
                    checkpoints.check()
        assert Checkpoints(tmp_path).latest_good() == max(good, default=None), action
    checkpoints.close()
    assert same(checkpoints.restore(make_tree()).tree, make_tree(float(max(good))))


def test_drop_after(tmp_path):
    checkpoints = save_steps(tmp_path, 1, 2, 3)
    checkpoints.drop_after(1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_leaves_that_are_no_arrays_are_refused(tmp_path):
    with pytest.raises(ValueError, match="count is a int"):
        Checkpoints(tmp_path).save(1, {"count": 3}, {})


def test_resolve_resume(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    save_steps(other / "checkpoints", 1, 2)
    assert resolve_resume("never", other) is None
    assert resolve_resume("auto", run) is None
    assert resolve_resume("auto", other) == other / "checkpoints"
    assert resolve_resume(str(other), run) == other / "checkpoints"
    step = other / "checkpoints" / "step_000001"
    assert resolve_resume(str(step), run) == step
    assert restore_path(step, make_tree()).step == 1
    assert restore_path(other / "checkpoints", make_tree()).step == 2
    with pytest.raises(InputError, match="does not exist"):
        resolve_resume(str(run), run)
    # Begun from another run, and preempted: the same command goes on with what it has saved since.
    save_steps(tmp_path / "mine" / "checkpoints", 3)
    assert resolve_resume(str(step), tmp_path / "mine") == tmp_path / "mine" / "checkpoints"
    # Back to an earlier step of its own.
    assert resolve_resume(str(step), other) == step
    with pytest.raises(InputError, match="holds no checkpoint"):
        resolve_resume(str(tmp_path), run)


def test_manifest_names_every_file(tmp_path):
    folder = save_steps(tmp_path, 1).folder(1)
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    listed = json.loads((folder / manifest.MANIFEST_NAME).read_text())["files"]
    assert set(listed) == written - {manifest.MANIFEST_NAME}
    assert any(name.startswith("state/") for name in listed)
    assert any(name.startswith("meta/") for name in listed)


def test_the_best_is_kept_only_when_asked_for(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=False) as checkpoints:
        for step, score in enumerate([0.9, 0.1], start=1):
            checkpoints.save(step, make_tree(), META, score)
    assert checkpoints.steps() == [2]


def test_a_damaged_older_step_does_not_cost_the_one_just_saved(tmp_path):
    checkpoints = save_steps(tmp_path, 1, 2)
    (checkpoints.folder(1) / manifest.MANIFEST_NAME).write_text("{")
    checkpoints.save(3, make_tree(3.0), META, 0.5)
    checkpoints.close()
    assert checkpoints.steps() == [2, 3]
    assert same(checkpoints.restore(make_tree()).tree, make_tree(3.0))


def test_a_failed_save_is_told_without_waiting_for_the_next(tmp_path, monkeypatch):
    checkpoints = save_steps(tmp_path, 1)
    checkpoints.check()

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(2, make_tree(2.0), META)
    checkpoints.settle()
    with pytest.raises(RunError, match="disk full: .*step_000002"):
        checkpoints.check()
    checkpoints.check()  # it is told once
    checkpoints.close()
    assert checkpoints.steps() == [1]
