"""The notebooks of docs/notebooks run from top to bottom, and what they hold is small and clean."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 250_000  # bytes, outputs included


def outputs(notebook: nbformat.NotebookNode) -> str:
    """All texts that its cells printed."""
    found = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return "".join(o.get("text", "") for o in found)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    images = [
        o
        for cell in notebook.cells
        for o in cell.get("outputs", [])
        if "image/png" in o.get("data", {})
    ]
    assert len(images) == 2
    if path.stem == "own_reward":
        assert "no mistake found on 8 samples" in outputs(notebook)
        lines = (tmp_path / "runs/covered/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        assert (tmp_path / "runs/covered/report.html").exists()
    else:
        # The plan that contradicted its caption obeys it after the swap, and so does its image.
        before, swapped, moved = json.loads(outputs(notebook).strip().splitlines()[-1])
        assert before < swapped


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_stored_is_small_and_of_no_machine(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text) < LARGEST
    stored = outputs(nbformat.read(path, as_version=4))
    assert "/home/" not in stored and "/tmp/" not in stored and str(ROOT) not in stored
    assert not [
        o
        for cell in json.loads(text)["cells"]
        for o in cell.get("outputs", [])
        if o["output_type"] == "error"
    ]
