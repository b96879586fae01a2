"""Fixtures shared by all tests; everything runs on forced CPU devices."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Commands that tests start leave nothing in the user's cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
# A shell starts background jobs with SIGINT ignored; tests of Ctrl-C, and their children, need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference outputs, captions and plans beside the checkout."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip(f"reference data not found at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def janus_a(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint `janus_a` as safetensors, written once a test session (0.9 GB)."""
    out = tmp_path_factory.mktemp("janus_a")
    command = [sys.executable, str(shared / "goldens" / "make_checkpoint.py"), "janus_a", str(out)]
    subprocess.run([*command, "--format", "safetensors"], check=True)
    return out


@pytest.fixture
def devices_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command would split the CPU, which a process can do only once."""
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)


@pytest.fixture(scope="module")
def compiled_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Jobs of the same sizes share their compiled programs, over all tests of the session."""
    from tiny import compiled_once

    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield
