"""The cache of compiled programs: where it is, who decides, and what it never breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from gotr1_jax.parallel import compile_cache
from gotr1_jax.parallel.compile_cache import use_compile_cache, user_folder

_NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_enable_xla_caches",
)


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """JAX is as without settings of a cache; the user's cache folder is `tmp_path`."""
    before = {name: getattr(jax.config, name) for name in _NAMES}
    jax.config.update(_NAMES[0], None)
    jax.config.update(_NAMES[1], 1.0)
    compilation_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def hits() -> Callable[[], int]:
    """Compiles a small program anew; how many programs were read from a cache for it."""
    count = 0

    def on_event(event: str, **_: str | int) -> None:
        nonlocal count
        count += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_listener(on_event)

    def compile_again() -> int:
        before = count
        jax.clear_caches()
        compilation_cache.reset_cache()
        assert float(jax.jit(lambda x: x * 5 + 3)(jnp.float32(2))) == 13
        return count - before

    return compile_again


def programs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*-cache"))


def test_programs_are_kept_in_the_users_cache_and_read_again(
    tmp_path: Path, hits: Callable[[], int]
) -> None:
    folder = user_folder()
    assert folder is not None and folder.is_relative_to(tmp_path / "gotr1" / "programs")
    use_compile_cache()
    assert hits() == 0
    assert programs(folder)
    assert folder.stat().st_mode & 0o077 == 0  # whoever writes there runs code here
    use_compile_cache("none")  # what is set stays
    assert hits() > 0


def test_the_home_folder_is_used_where_xdg_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        folder = user_folder()
        assert folder is not None and folder.is_relative_to(Path.home() / ".cache" / "gotr1")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert user_folder() is None
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_settings_of_jax_and_of_the_run_win(tmp_path: Path) -> None:
    use_compile_cache("none")
    use_compile_cache(processes=2)  # hosts have homes of their own
    assert jax.config.jax_compilation_cache_dir is None
    use_compile_cache(str(tmp_path / "mine"), processes=2)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", "")
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir == ""


def test_a_cache_that_fails_is_no_error(
    tmp_path: Path, hits: Callable[[], int], monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    (tmp_path / "gotr1").write_text("a file where a folder should be")
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None and hits() == 0

    use_compile_cache(str(tmp_path / "mine"))
    hits()
    for program in programs(tmp_path / "mine"):  # as a full disk or a kill leaves it
        program.write_bytes(program.read_bytes()[:-9])
    assert hits() == 0
    assert not recwarn.list

    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(compile_cache, "_LEAST_FREE", 2**62)
    use_compile_cache(str(tmp_path / "full"))
    hits()
    assert not programs(tmp_path / "full")  # nothing is added to a full disk


def test_a_folder_that_grew_too_large_loses_what_was_used_longest_ago(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for age in range(10):
        program = folder / f"{age}-cache"
        program.write_bytes(bytes(100))
        os.utime(program, (10_000 - age, 10_000 - age))
    (folder / "data").write_bytes(bytes(1000))  # whatever else a named folder holds
    (folder / "folder-cache").mkdir()
    monkeypatch.setattr(compile_cache, "_MOST_BYTES", 800)
    use_compile_cache(str(folder))
    left = [f"{age}-cache" for age in range(6)]
    assert sorted(entry.name for entry in folder.iterdir()) == [*left, "data", "folder-cache"]


def test_programs_of_another_user_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = user_folder()
    assert folder is not None
    folder.mkdir(parents=True)
    if os.getuid() == 0:
        os.chown(folder, 4321, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 4321)
    use_compile_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_importing_the_library_sets_nothing() -> None:
    code = (
        "import jax, gotr1_jax; from gotr1_jax import Pipeline; import gotr1_jax.cli;"
        f"print([getattr(jax.config, name) for name in {_NAMES!r}])"
    )
    names = [name.upper() for name in _NAMES]
    clean = {name: value for name, value in os.environ.items() if name not in names}
    found = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert found.stdout.strip() == "[None, 1.0, 'xla_gpu_per_fusion_autotune_cache_dir']"
