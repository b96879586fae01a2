"""Checkpoints that the parity tests read, and one of their own to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_checkpoints import write_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "ckpt")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    shutil.copytree(tiny, tmp_path / "ckpt")
    return tmp_path / "ckpt"
