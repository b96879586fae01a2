"""What the documentation shows: Python runs as it stands, links lead somewhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gotr1_jax.config_reference import field_help
from gotr1_jax.jobs import JOBS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
ENDINGS = {"txt", "jsonl", "safetensors"}  # of files, which are no settings
FORMER = {"loss.advantage", "judge.qwen2_5_vl"}  # names that pages say are still read
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


def heading_ids(text: str) -> set[str]:
    """Anchors of a page's headings, as the forges make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = COMMENT.sub("", page.read_text("utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page if not name else (page.parent / name).resolve()
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in heading_ids(target.read_text("utf-8")), f"{page.name}: {link}"


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text("utf-8")))
    # index.md is the site's start, api.md is made for the site.
    only_site = {"docs/index.md", "docs/api.md"}
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages - linked == only_site


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_faults_name_tests_that_exist() -> None:
    rows = (ROOT / "docs/faults.md").read_text("utf-8")
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?", rows))
    assert len(named) > 100
    for file, test in sorted(named):
        text = (ROOT / file).read_text("utf-8")
        assert not test or f"def {test}(" in text, f"docs/faults.md: {file}::{test}"


def test_settings_exist() -> None:
    """`section.name` in a page is a setting of a job, by the name that it has now."""
    known: set[str] = set()
    for module, schema, _ in JOBS.values():
        names = field_help(getattr(importlib.import_module(module), schema))
        known |= {".".join(n.split(".")[:i]) for n in names for i in range(1, n.count(".") + 2)}
    sections = {name.split(".")[0] for name in known if "." in name}
    for page in PAGES:
        if page.name in ("changelog.md", "faults.md"):  # which tell of former names
            continue
        text = page.read_text("utf-8")
        for name in re.findall(r"`(?:--)?([a-z_]+(?:\.[a-z_0-9]+)+)(?=[`:= ])", text):
            is_setting = name.split(".")[0] in sections and name.split(".")[-1] not in ENDINGS
            assert not is_setting or name in known | FORMER, f"{page.name}: {name}"


def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    config = ROOT / "docs" / "site" / "mkdocs.yml"
    built = subprocess.run([*command, "-f", str(config)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {folder.name for folder in tmp_path.iterdir()}
    # What the reference shows comes from the docstrings.
    assert "The answer to a question about one image" in (tmp_path / "api/index.html").read_text()


@pytest.mark.usefixtures("compiled_programs")
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_runs_as_it_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = CODE.findall((ROOT / name).read_text("utf-8"))
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:  # a page's blocks follow one another
        exec(compile(block, name, "exec"), names)  # noqa: S102
    assert list(tmp_path.glob("*.png"))
