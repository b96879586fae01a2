"""`gotr1 generate --search` and `gotr1 eval search` with the embedded model: pairs, resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_generator import gotr1
from report_pages import PageReader
from tiny import write_config

from gotr1_jax.cli import run
from gotr1_jax.errors import InputError
from gotr1_jax.generate import generator
from gotr1_jax.generate.batches import BatchSizes
from gotr1_jax.generate.config import GenerateConfig
from gotr1_jax.shapes.dataset import shapes_captions

pytestmark = pytest.mark.usefixtures("devices_as_they_are", "compiled_programs")

COMMON = ("--cfg", "3", "--max-plan-tokens", "60", "--batch-size", "4")
SEARCH = ("--search", "verify", "repair", "repaint", "--judge.kind", "shapes",
          "--search.plans", "3", "--search.images", "2")  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def loaded_once() -> Iterator[None]:
    """Commands of equal settings share a loaded model: they compile the same programs."""
    make, loaded = generator.ImageGenerator, dict[Any, Any]()

    def load(config: GenerateConfig, source: Path, sizes: BatchSizes, dtype: str) -> Any:
        key = (config.cfg, config.max_plan_tokens, config.batch_size, source, dtype)
        if key not in loaded:
            loaded[key] = make(config, source, sizes, dtype)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "ImageGenerator", load)
        yield


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("captions") / "captions.txt"
    known = shapes_captions("heldout", 4)
    # As long as the others, so that the same programs draw it.
    file.write_text("\n".join([*known, "a red circle of a blue square"]))
    return file


@pytest.fixture(scope="module")
def searched(captions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "out"
    gotr1("--prompts", captions, "--out", out, *COMMON, *SEARCH)
    return out


def samples(out: Path) -> list[dict[str, Any]]:
    files = sorted(out.glob("[0-9]*/result.json"))
    return [s for file in files for s in json.loads(file.read_text())["samples"]]


def test_the_first_draw_is_the_sample_without_a_search(
    captions: Path, searched: Path, tmp_path: Path
) -> None:
    gotr1("--prompts", captions, "--out", tmp_path / "plain", *COMMON)
    same = 0
    for plain, sample in zip(samples(tmp_path / "plain"), samples(searched), strict=True):
        (attempt,) = sample["search"]["attempts"]
        assert attempt["plans"] <= 3 and attempt["images"] <= 2
        assert sample["search"]["cost"]["images"] == attempt["images"]
        if attempt["plan"] == 0 and not attempt["repaired"]:
            assert sample["plan_ids"] == plain["plan_ids"]
            same += 1
            if attempt["image"] == 0:
                assert sample["image_ids"] == plain["image_ids"]
    assert same > 0
    last = samples(searched)[-1]["search"]["attempts"][0]
    assert last["verdicts"][0]["passed"] is None  # the exact judge does not know it either


def test_a_stopped_search_goes_on(captions: Path, searched: Path) -> None:
    before = {f: f.read_bytes() for f in sorted(searched.rglob("*")) if f.is_file()}
    for file in (searched / "00001").iterdir():
        file.unlink()
    gotr1("--prompts", captions, "--out", searched, *COMMON, *SEARCH)
    assert {f: f.read_bytes() for f in sorted(searched.rglob("*")) if f.is_file()} == before
    with pytest.raises(InputError, match="another search: search.plans 3, not 2"):
        gotr1("--prompts", captions, "--out", searched, *COMMON, *SEARCH, "--search.plans", "2")
    with pytest.raises(InputError, match="a --search, which is not given now"):
        gotr1("--prompts", captions, "--out", searched, *COMMON)


def test_the_comparison_of_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searches = [
        {"name": "none", "search": {"methods": ["best_of"], "samples": 1}},
        {"name": "best of 2", "search": {"methods": ["best_of"], "samples": 2}},
        {"name": "repair", "search": {"methods": ["repair"]}},
    ]
    config = write_config(
        tmp_path / "eval.yaml", {"searches": searches, "captions": 4, "batch_size": 4}
    )
    out = tmp_path / "out"
    words = ["eval", "search", "--out", str(out), "--config", str(config)]
    assert run([*words, "--card", str(tmp_path / "card.json")]) == 0
    made, stored = (
        json.loads(f.read_text()) for f in (tmp_path / "card.json", out / "scores.json")
    )
    assert made["scores"] == stored["scores"] and list(made["scores"]) == [
        "none",
        "best of 2",
        "repair",
    ]
    assert made["captions"]["number"] == 4 and made["seed"] == 0 and made["images"]["resolution"]
    assert "of embedded; template gotr1, guidance " in (out / "scores.md").read_text()
    lines = [json.loads(line) for line in (out / "searches.jsonl").read_text().splitlines()]
    none, two, repair = lines
    assert none["cost"] == 1 and none["scores"]["total"]["gain"] == 0
    assert two["image_tokens"] == 2 and two["scores"]["total"]["gain"] >= 0
    assert repair["image_tokens"] == repair["plan_tokens"] == 1
    assert "| best of 2 |" in (out / "scores.md").read_text()
    assert (out / "gain.svg").read_text().count("<circle") == 3
    page = PageReader((out / "gallery.html").read_text("utf-8"))
    shown = page.items("images")
    assert [column["label"] for column in shown[0]["columns"]] == ["none", "best of 2", "repair"]
    keys = [sample["key"] for sample in page.data["samples"]]
    assert len(set(keys)) == 12 and keys[:2] == ["none/00000", "best of 2/00000"]
    # Finished searches are not run again; other settings are refused.
    table = (out / "scores.md").read_bytes()
    (out / "repair.jsonl").rename(tmp_path / "repair.jsonl")
    assert run(words) == 0
    assert (out / "repair.jsonl").read_bytes() == (tmp_path / "repair.jsonl").read_bytes()
    assert (out / "scores.md").read_bytes() == table
    assert run([*words, "--seed", "1"]) == 2
    assert "seed 0, not 1" in capsys.readouterr().err
