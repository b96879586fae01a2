"""Checkpoints on full disks and in processes that are killed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from saved_trees import META, make_tree, same, save_steps

from gotr1_jax.errors import RunError
from gotr1_jax.trainer import manifest
from gotr1_jax.trainer.checkpoint import Checkpoints


def test_files_are_on_disk_before_their_manifest_has_its_name(tmp_path, monkeypatch):
    events: list[tuple[int, int] | str] = []

    def fsync(descriptor: int) -> None:
        about = os.fstat(descriptor)
        events.append((about.st_dev, about.st_ino))

    def replace(source: Path, target: Path) -> None:
        events.append(Path(target).name)
        os.rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    folder = save_steps(tmp_path / "checkpoints", 1).folder(1)

    def flushed(path: Path) -> int:
        about = path.stat()
        return events.index((about.st_dev, about.st_ino))

    renamed = events.index(manifest.MANIFEST_NAME)
    paths = [folder.parent, folder, *folder.rglob("*")]
    assert len(paths) > 8 and all(flushed(path) < renamed for path in paths)
    # The manifest's own name is flushed too.
    about = folder.stat()
    assert (about.st_dev, about.st_ino) in events[renamed:]


def test_a_disk_that_nothing_can_be_removed_from_does_not_hide_a_failed_save(tmp_path, monkeypatch):
    checkpoints = save_steps(tmp_path, 1)

    def readonly(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:

        def fsync(_: int) -> None:
            patched.setattr("pathlib.Path.unlink", readonly)
            readonly()

        patched.setattr(os, "fsync", fsync)
        checkpoints.save(2, make_tree(2.0), META)
        with pytest.raises(RunError, match="cannot write .*step_000002.*: Read-only file system"):
            checkpoints.wait()
        (tmp_path / "step_000009").mkdir()
        with pytest.raises(RunError, match="cannot write .*step_000009: Read-only file system"):
            checkpoints.drop_after(8)
    assert checkpoints.latest_good() == 1
    checkpoints.close()


@pytest.mark.parametrize("where", ["orbax", "manifest"])
def test_a_failed_write_is_never_reported_as_saved(tmp_path, monkeypatch, where):
    checkpoints = save_steps(tmp_path, 1, keep=1)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        if where == "orbax":

            def save_half(_writer, folder, **_kwargs):
                folder.with_name(f"{folder.name}.orbax-checkpoint-tmp-1").mkdir()
                full()

            patched.setattr(ocp.AsyncCheckpointer, "save", save_half)
        else:
            patched.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="disk full: .*step_000002"):
            checkpoints.save(2, make_tree(2.0), META)
            checkpoints.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]
    assert same(checkpoints.restore(make_tree()).tree, make_tree(1.0))
    checkpoints.save(2, make_tree(2.0), META)
    assert checkpoints.latest_good() == 2
    checkpoints.close()


def test_a_really_full_disk(tmp_path):
    """A 2 MB file system, mounted where this may be done, takes one checkpoint but not two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        rng = np.random.default_rng(0)
        tree = {"a": jnp.array(rng.normal(size=320_000), jnp.float32)}
        checkpoints = Checkpoints(disk / "checkpoints")
        checkpoints.save(1, tree, {})
        checkpoints.wait()
        with pytest.raises(RunError, match="disk full: .*step_000002"):
            checkpoints.save(2, jax.tree.map(lambda a: a + 1, tree), {})
            checkpoints.wait()
        checkpoints.close()
        assert [p.name for p in (disk / "checkpoints").iterdir()] == ["step_000001"]
        assert same(checkpoints.restore(tree).tree, tree)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_killed_process_leaves_the_step_before(tmp_path):
    program = """
        import jax.numpy as jnp
        from gotr1_jax.trainer import manifest, checkpoint
        import time
        checkpoints = checkpoint.Checkpoints({path!r})
        tree = {{"a": jnp.arange(1000.0)}}
        checkpoints.save(1, tree, {{}})
        checkpoints.wait()
        def stuck(*_):
            print("committed", flush=True)
            time.sleep(60)
        checkpoint.write_manifest = stuck
        checkpoints.save(2, tree, {{}})
        checkpoints.close()
    """
    source = textwrap.dedent(program).format(path=str(tmp_path))
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, cwd=root)
    assert process.stdout is not None and process.stdout.readline() == b"committed\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "step_000002").is_dir()
    restored = Checkpoints(tmp_path).restore({"a": jnp.zeros(1000)})
    assert restored.step == 1


def test_a_folder_that_cannot_be_made_ends_the_save_at_once(tmp_path, monkeypatch):
    """Orbax makes it in the background by default, where its threads wait for it for 300 s."""
    checkpoints = save_steps(tmp_path, 1)

    def readonly(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    begin = time.monotonic()
    with monkeypatch.context() as patched:
        # The file system turns read-only after it was asked.
        patched.setattr(os, "mkdir", readonly)
        with pytest.raises(RunError, match="cannot write .*step_000002: Read-only file system"):
            checkpoints.save(2, make_tree(2.0), META)
            checkpoints.wait()
    assert time.monotonic() - begin < 60
    assert checkpoints.latest_good() == 1
    checkpoints.close()


def test_a_read_only_disk_and_a_file_in_place_of_the_folder_end_the_save(tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    begin = time.monotonic()
    try:
        checkpoints = save_steps(disk / "checkpoints", 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(RunError, match="cannot write .*step_000002: Read-only file system"):
            checkpoints.save(2, make_tree(2.0), META)
        assert same(checkpoints.restore(make_tree()).tree, make_tree(1.0))
        checkpoints.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="cannot write .*step_000002: File exists"):
        Checkpoints(tmp_path / "checkpoints").save(2, make_tree(), META)
    assert time.monotonic() - begin < 60
    assert "Traceback" not in capfd.readouterr().err
