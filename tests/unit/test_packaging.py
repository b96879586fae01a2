"""What a package index, a citation and a container see: setup.py, CITATION.cff, the Dockerfiles."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
import yaml

import gotr1_jax

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "launch").glob("Dockerfile*"))
INSTRUCTIONS = {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What setup.py gives to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **values: given.update(values))
    runpy.run_path(str(ROOT / "setup.py"))
    return given


def test_metadata(metadata: dict[str, Any]) -> None:
    assert metadata["version"] == gotr1_jax.__version__
    assert metadata["author"] == "The gotr1_jax authors"
    assert all(url.startswith("https://arxiv.org/") for url in metadata["project_urls"].values())
    named = [c.rsplit(" ", 1)[1] for c in metadata["classifiers"] if c[-5:-2] == " 3."]
    assert named == ["3.11", "3.12", "3.13"]
    assert metadata["python_requires"] == f">={named[0]}"
    assert len(set(metadata["classifiers"])) == len(metadata["classifiers"])


def test_version_is_that_of_changelog_and_citation() -> None:
    changelog = (ROOT / "docs" / "changelog.md").read_text("utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == gotr1_jax.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", gotr1_jax.__version__)
    assert citation["authors"] == [{"name": "The gotr1_jax authors"}]
    assert {"message", "title", "license"} <= set(citation)
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= set(reference)


def lines_of(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments) in order, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile.read_text("utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, rest in (line.split(maxsplit=1) for line in lines)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_made_of_what_is_there(path: Path, metadata: dict[str, Any]) -> None:
    lines = lines_of(path)
    assert {word for word, _ in lines} <= INSTRUCTIONS
    assert lines[0][0] == "FROM"
    version = re.fullmatch(r"python:(3\.\d+)-slim", lines[0][1])
    assert version and f"Programming Language :: Python :: {version[1]}" in metadata["classifiers"]
    copied = []
    for source in (words.split()[:-1] for word, words in lines if word == "COPY"):
        copied += source
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # All that setup.py reads and installs.
    assert {"setup.py", "README.md", "LICENSE", "pyproject.toml", "gotr1_jax", "configs"} <= set(
        copied
    )
    values = dict(words.split("=", 1) for word, words in lines if word == "ARG")
    (install,) = (words for word, words in lines if word == "RUN")
    extra = re.fullmatch(r'pip install --no-cache-dir "\.\[(\S+)\]"', install)
    assert extra
    name = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], extra[1])
    assert name in metadata["extras_require"]
    (script,) = metadata["entry_points"]["console_scripts"]
    assert lines[-1] == ("ENTRYPOINT", f'["{script.split(" ")[0]}"]')


def test_extras_that_the_documentation_installs_exist(metadata: dict[str, Any]) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    found = {
        extra
        for page in pages
        for extra in re.findall(r"-e '\.\[(\w+)\]'", page.read_text("utf-8"))
    }
    assert {"cuda12", "convert", "notebooks"} <= found
    assert found <= set(metadata["extras_require"])


def test_what_the_documentation_builds_and_applies_exists() -> None:
    found = {
        file
        for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for file in re.findall(r"(?:--file|apply -f) (launch/[\w./]+\w)", page.read_text("utf-8"))
    }
    assert {"launch/Dockerfile.cuda", "launch/gke_jobset.yaml"} <= found
    assert [file for file in found if not (ROOT / file).is_file()] == []
