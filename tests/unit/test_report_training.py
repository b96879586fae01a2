"""The page of a run that learns from examples."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, open_page
from PIL import Image

from gotr1_jax.config import to_yaml
from gotr1_jax.models.config import VQConfig
from gotr1_jax.plan import Box
from gotr1_jax.report.page import write_report
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, store_config, write_summary
from gotr1_jax.trainer.samples import SampleRecord, write_samples
from gotr1_jax.vq.config import VqTrainConfig

CONFIG = VqTrainConfig(run_dir="run", model=VQConfig(), steps=300)
ODD = "<b>a red & blue</b> circle"


def make_run(root: Path) -> RunDir:
    """A run with all that a page can show: metrics, samples, reconstructions, changes."""
    run = create_run_dir(root, to_yaml(CONFIG), may_exist=False)
    changed = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=2e-5))
    store_config(run, to_yaml(changed), kept_until=100)
    run.differing.write_text("run_dir: run\noptimizer:\n  learning_rate: 2.0e-05\n")
    lines = [
        {"step": s, "loss": 3 / s, "psnr": 10 + s / 50, "consistency": 0.0, "own/number": s}
        for s in range(50, 301, 50)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (1, 100, 200, 300):
        records = [
            SampleRecord(
                caption=caption, caption_index=i, plan_text=f"a circle (1,2),({step},400)",
                planned=(("circle", Box(1, 2, step, 400)),), detections=(), scores={},
                total=math.nan, image=np.full((16, 16, 3), step % 256, np.uint8),
            )
            for i, caption in enumerate((ODD, "a blue square"))
        ]  # fmt: skip
        write_samples(run.samples, step, records)
    Image.new("RGB", (64, 32), (9, 99, 199)).save(run.reconstructions)
    write_summary(run, 300, 75.0, {"psnr": 31.25, "judge_error": 0.0625, "more": {"nan": None}})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("vq") / "run")


def test_everything_of_the_run_is_on_the_page(run: RunDir):
    page = write_report(run.root).read_text()
    for heading in (
        "What it ended with", "Reconstructions", "Loss", "Samples over the steps",
        "Settings that changed during the run", "Settings that differ from the defaults",
    ):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page, heading
    assert "steps 300" in page and "1 min 15 s" in page and "31.25" in page and "0.0625" in page
    assert "more/nan" in page and "dB" in page
    assert ODD not in page and page.count("&lt;b&gt;a red &amp; blue&lt;/b&gt; circle") >= 4
    assert page.index("step 1</p>") < page.index("step 100</p>") < page.index("step 300</p>")
    assert "optimizer.learning_rate 1.0e-05 → 2.0e-05" in page and "learning_rate: 2.0e-05" in page
    assert "<b>PSNR</b>" in page and "<b>own/number</b>" in page
    assert "<b>consistency</b>" not in page  # no part of this run's loss


@pytest.mark.parametrize(
    "file, said",
    [
        ("reconstructions.png", "reconstructions.png"),
        ("config_differing.yaml", "config_differing.yaml"),
        ("config_until_step_000100.yaml", "config_until_step_000100.yaml"),
        ("samples/step_000200/samples.jsonl", "step_000200 cannot be read"),
        ("summary.json", "summary.json"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_shown(file: str, said: str, tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run.root / file).write_bytes(b"\x89PNG\xff{")
    page = write_report(run.root).read_text()
    assert said in page and "<h2>Loss</h2>" in page
    assert "Not everything of this run could be read" in page


def test_a_run_that_has_hardly_begun_has_a_page(tmp_path: Path):
    run = create_run_dir(tmp_path / "run", to_yaml(CONFIG), may_exist=False)
    page = write_report(run.root).read_text()
    assert "not finished" in page and "learning_rate" in page


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: chromium)")
def test_the_page_in_a_browser(run: RunDir, tmp_path: Path):
    with open_page(write_report(run.root).as_uri(), tmp_path / "profile") as page:
        page.wait_for("document.images.length == 9 && document.readyState == 'complete'")
        assert page.value("[...document.images].every(i => i.naturalWidth > 0)")
        for width in (390, 1280):
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            page.call("Emulation.setDeviceMetricsOverride", **size)
            assert page.value("document.documentElement.scrollWidth") <= width
