"""The pages in a browser: what its slider, search, filters and links do, and who can use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import CHROMIUM, Page, open_page
from report_pages import NAN, record

from gotr1_jax import cli
from gotr1_jax.evaluation.gallery import GalleryImage, write_columns
from gotr1_jax.report.page import write_report
from gotr1_jax.trainer.run_dir import create_run_dir
from gotr1_jax.trainer.samples import followed_name, read_samples, write_samples

HOSTILE = "<img src=x onerror=\"window.hacked='caption'\"></script><script>window.hacked=1</script>"
CAPTIONS = ("a red circle", "two green stars", HOSTILE, *(f"caption {i}" for i in range(16)))
SUMMARY = {
    "before": {"total": 0.2, "sem": 0.5}, "after": {"total": 0.3, "sem": 0.75}, "steps": 20,
    "watched": {"before": {"verdict": 0.0}, "after": {"verdict": 0.5}},
}  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


def make_run(root: Path, gain: float) -> Path:
    """Held-out captions before, at steps 5 and 10 and after; one more caption cannot be scored."""
    run = create_run_dir(root, f"seed: 3\nsteps: {20 * gain}\n", may_exist=False)
    stages = {"eval_before": 0.0, followed_name(5): 0.1, followed_name(10): 0.2, "eval_after": gain}
    for number, (name, added) in enumerate(stages.items()):
        records = [
            record(
                caption, caption_index=i, total=0.02 * i + added,
                scores={"sem": NAN if i == 1 else 0.5}, rationale=HOSTILE,
                watched={"verdict": float(i % 2)}, plan_text=f"{caption} {'very ' * 200}",
                image=np.full((8, 8, 3), 40 * number, np.uint8),
            )
            for i, caption in enumerate(CAPTIONS)
        ]  # fmt: skip
        write_samples(run.samples, 0, records, name=name)
    for step in (1, 20):
        write_samples(run.samples, step, [record(total=0.3), record(sample_index=1, total=0.9)])
    lines = [{"step": s, "reward/total/mean": s * gain, "tokens": 2.3e9 + s} for s in range(1, 21)]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.summary.write_text(json.dumps(SUMMARY))
    run.provenance.write_text(json.dumps({"starts": [{"seed": 3, "commit": "a1b2c3"}]}))
    return run.root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("runs")
    return make_run(root / "one", 0.4), make_run(root / "two", 0.1)


@pytest.fixture(scope="module")
def browser(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    url = write_report(runs[0]).as_uri()
    with open_page(url, tmp_path_factory.mktemp("profile")) as page:
        yield page


def show(page: Page, path: Path, anchor: str = "") -> None:
    """Opens a page anew."""
    page.call("Page.navigate", url="about:blank")
    page.call("Page.navigate", url=f"{path.as_uri()}{anchor}")
    page.wait_for("document.readyState === 'complete' && document.querySelector('.card') !== null")


def texts(page: Page, selector: str) -> list[str]:
    return page.value(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")


def put(page: Page, selector: str, value: str) -> None:
    """Changes a control as a reader would."""
    page.value(
        f"(() => {{ const e = document.querySelector({selector!r}); e.value = {value!r};"
        "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change')); })()"
    )


def status(page: Page) -> str:
    return page.value("document.querySelector('[data-gallery=held_out] [role=status]').textContent")


HELD_OUT = "[data-gallery=held_out]"


def test_captions_are_followed_searched_and_filtered(browser: Page, runs: Any) -> None:
    show(browser, write_report(runs[0]))
    titles, gains = f"{HELD_OUT} h3", f"{HELD_OUT} header span"
    assert status(browser) == "19 captions" and len(texts(browser, titles)) == 12
    assert texts(browser, titles)[:3] == list(CAPTIONS[:3])
    assert set(texts(browser, gains)) == {"+0.40"}
    put(browser, f"{HELD_OUT} input[type=range]", "0")
    assert texts(browser, f"{HELD_OUT} output") == ["step 5"]
    assert set(texts(browser, gains)) == {"+0.10"}
    assert texts(browser, f"{HELD_OUT} .side")[:2] == ["before", "step 5"]
    browser.value(f"document.querySelector('{HELD_OUT} > button').click()")
    assert len(texts(browser, titles)) == 19
    put(browser, f"{HELD_OUT} input[type=search]", "STARS very")
    assert texts(browser, titles) == ["two green stars"] and status(browser) == "1 of 19 captions"
    put(browser, f"{HELD_OUT} input[type=search]", "")
    # Totals at step 5 are 0.10, 0.12, ..., those before are not filtered.
    put(browser, f"{HELD_OUT} [aria-label='total: most']", "0.15")
    assert texts(browser, titles) == list(CAPTIONS[:3])
    put(browser, f"{HELD_OUT} [aria-label='total: least']", "0.11")
    assert texts(browser, titles) == list(CAPTIONS[1:3])
    put(browser, f"{HELD_OUT} [aria-label=Failures]", "lost")
    assert texts(browser, titles) == [CAPTIONS[1]]
    put(browser, f"{HELD_OUT} [aria-label=Failures]", "=verdict")
    assert texts(browser, titles) == [CAPTIONS[2]]
    put(browser, f"{HELD_OUT} [aria-label=Failures]", "")
    put(browser, f"{HELD_OUT} [aria-label='gain: least']", "0.2")
    assert status(browser) == "0 of 19 captions"
    put(browser, f"{HELD_OUT} [aria-label='gain: least']", "0.05")
    put(browser, f"{HELD_OUT} [aria-label=Order]", "up")
    assert status(browser) == "2 of 19 captions"


def test_a_sample_has_an_address_of_its_own(browser: Page, runs: Any) -> None:
    page = write_report(runs[0])
    show(browser, page)
    is_open = "document.querySelector('dialog').open"
    assert not browser.value(is_open)
    browser.value(f"document.querySelector('{HELD_OUT} .card:nth-child(2) a').click()")
    browser.wait_for(is_open)
    assert browser.value("location.hash") == "#eval_after/00_00"
    browser.value("document.querySelector('dialog .previous').click()")
    assert browser.value("location.hash") == "#eval_step_000010/00_00"
    assert "step 10" in texts(browser, "dialog .soft")[0]
    browser.value("document.querySelector('dialog').close()")
    browser.wait_for("location.hash === ''")
    show(browser, page, "#step_000020/00_01")
    assert browser.value(is_open)
    assert texts(browser, "dialog .advantage b") == ["+1.00"]
    show(browser, page, "#nothing%like/it")
    assert not browser.value(is_open)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_can_be_used_by_everybody(
    browser: Page, runs: tuple[Path, Path], tmp_path: Path, scheme: str
) -> None:
    """axe-core finds nothing serious, nothing is wider than a phone, no text becomes a program."""
    assert cli.run(["report", *map(str, runs), "--out", str(tmp_path / "both.html")]) == 0
    images = [
        GalleryImage(f"{i}", runs[0] / f"samples/eval_after/{r.image_name}", r.caption, f"{i}",
                     {"correct": r.total}, r.plan_text, HOSTILE)
        for i, r in enumerate(read_samples(runs[0] / "samples/eval_after"))
    ]  # fmt: skip
    shown = [replace(i, name=f"b{i.name}", scores={"correct": NAN}) for i in images]
    pages = (
        write_report(runs[0]), tmp_path / "both.html",
        write_columns(tmp_path, "Searches", {"none": images, "best of 4": shown}),
    )  # fmt: skip
    for path, anchor in zip(pages, ("", "", "#3")):
        browser.resize(1280, 900, scheme)
        show(browser, path, anchor)
        browser.value("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        for width in (1280, 390):
            browser.resize(width, 900, scheme)
            assert browser.check_accessibility() == [], (path.name, width)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), path.name
        assert browser.value("window.hacked") is None


def test_the_check_of_accessibility_finds_what_is_wrong(browser: Page, runs: Any) -> None:
    browser.resize(1100, 1300, "light")
    show(browser, write_report(runs[0]))
    for name in ("aria-label", "placeholder"):
        browser.value(f"document.querySelector('input[type=search]').removeAttribute('{name}')")
    browser.value("document.querySelector('h1').style.color = '#eee'")
    found = browser.check_accessibility()
    assert [line.partition(":")[0] for line in found] == ["color-contrast", "label"]


def test_runs_stand_side_by_side(browser: Page, runs: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.html"
    assert cli.run(["report", *map(str, runs), "--out", str(path)]) == 0
    show(browser, path)
    gallery = "[data-gallery=side_by_side]"
    assert texts(browser, f"{gallery} .side")[:2] == ["one", "two"]
    assert set(texts(browser, f"{gallery} header span")) == {"−0.30"}
    put(browser, f"{gallery} input[type=range]", "1")
    assert texts(browser, f"{gallery} output") == ["step 5"]
    assert set(texts(browser, f"{gallery} header span")) == {"+0.00"}
    assert texts(browser, ".chart figcaption b")[0] == "total"
    assert texts(browser, ".chart .key")[:2] == ["one 7.80", "two 1.95"]
    rows = texts(browser, "tr")
    assert any("steps" in row and "8.0" in row and "2.0" in row for row in rows)
    assert any("commit" in row and row.count("a1b2c3") == 2 for row in rows)
