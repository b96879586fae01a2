"""Damaged files beside the checkpoints: left out with a line, or refused in one; never a hang."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from lookup_engine import request
from report_pages import record

from gotr1_jax.errors import InputError, RunError
from gotr1_jax.report.load import load_run
from gotr1_jax.report.page import write_report
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult
from gotr1_jax.rewards.composite import CachedJudge, request_key
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.manifest import MANIFEST_NAME, manifest_problem
from gotr1_jax.trainer.metrics import MetricsWriter, read_metrics
from gotr1_jax.trainer.run_dir import RunDir, create_run_dir, step_number
from gotr1_jax.trainer.samples import drop_samples_after, read_samples, sample_steps, write_samples
from gotr1_jax.vlm_engine.answer_cache import AnswerCache

DEEP = "[" * 100_000
BAD_LINES = (
    "nonsense", "[1, 2]", "7", "null", '{"lr": 1.0}', '{"step": "2"}', '{"step": true}',
    '{"step": 1.5}', '{"step": -1}', '{"step": 1e400}', f'{{"step": 1{"0" * 400}}}', "\x00\x00",
    DEEP, '{"step": 2, "lr": ', '{"step": null}', '"\ud800"',
)  # fmt: skip


def test_lines_of_metrics_that_cannot_be_read_are_left_out(tmp_path: Path, caplog):
    run = RunDir(tmp_path)
    good = ['{"step": 1, "lr": 0.5}', '{"step": 2, "lr": NaN, "odd": {"a": [1]}}']
    lines = [good[0], *BAD_LINES, good[1], '{"step": 9, "lr": 1.0}', '{"step": 3, "l']
    run.metrics.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    assert [line["step"] for line in read_metrics(run.metrics)] == [1, 2, 9]
    MetricsWriter(run, 2).close()
    assert run.metrics.read_text() == "".join(line + "\n" for line in good)
    assert f"{len(BAD_LINES) + 1} lines that cannot be read are left out" in caplog.text


@pytest.mark.parametrize("what", ["missing", "empty", "dangling"])
def test_metrics_that_are_gone_are_told(what: str, tmp_path: Path, caplog):
    run = RunDir(tmp_path)
    if what == "empty":
        run.metrics.touch()
    elif what == "dangling":
        run.metrics.symlink_to("nowhere")
    MetricsWriter(run, 2).close()
    assert "no line of the 2 steps before" in caplog.text
    assert run.metrics.is_file() and run.metrics.read_text() == ""
    caplog.clear()
    MetricsWriter(RunDir(tmp_path / "new"), 0).close()
    assert caplog.text == ""


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_metrics_that_are_no_file_are_refused(what: str, tmp_path: Path):
    run = RunDir(tmp_path)
    make(run.metrics, what)
    with pytest.raises(InputError, match="metrics"):
        MetricsWriter(run, 2)
    assert any("metrics" in line for line in load(tmp_path).problems)


def make(path: Path, what: str) -> None:
    """Something in place of a file."""
    path.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "dangling":
        path.symlink_to("nowhere")
    else:
        path.mkdir()


def load(root: Path) -> Any:
    (root / "samples").mkdir(exist_ok=True)
    return load_run(root, 100)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(5, {"a": jnp.zeros(3)}, {"seed": 0})
    return folder / "step_000005"


GOOD = "0" * 64
MANIFESTS: dict[str, Any] = {
    "a device": {"step": 5, "score": None, "files": {"/dev/zero": GOOD}},
    "a path above": {"step": 5, "score": None, "files": {"../../etc/passwd": GOOD}},
    "a path through above": {"step": 5, "score": None, "files": {"state/../../x": GOOD}},
    "a NUL": {"step": 5, "score": None, "files": {"a\0b": GOOD}},
    "a long name": {"step": 5, "score": None, "files": {"a" * 5000: GOOD}},
    "no files": {"step": 5, "score": None, "files": {}},
    "a list of files": {"step": 5, "score": None, "files": [["meta", GOOD]]},
    "numbers for hashes": {"step": 5, "score": None, "files": {"meta/metadata": 5}},
    "a step in words": {"step": "5", "score": None, "files": {"meta/metadata": GOOD}},
    "a score in words": {"step": 5, "score": "best", "files": {"meta/metadata": GOOD}},
    "a list": [],
    "a number": 5,
    "a folder": {"step": 5, "score": None, "files": {"state": GOOD}},
}


@pytest.mark.parametrize("what", [*MANIFESTS, "deep", "NaN", "pipe", "device", "folder"])
def test_manifests_that_name_something_else_are_no_checkpoints(what: str, saved: Path):
    path = saved / MANIFEST_NAME
    good = path.read_text()
    assert manifest_problem(saved, 5) is None
    try:
        if what in MANIFESTS:
            path.write_text(json.dumps(MANIFESTS[what]))
        elif what in ("deep", "NaN"):
            value = DEEP if what == "deep" else good.replace("null", "NaN")
            path.write_text(value)
        else:
            make(path, what)
        problem = manifest_problem(saved, 5)
        assert problem is not None and "step_000005" in problem
        with pytest.raises(RunError, match="step_000005"):
            Checkpoints(saved.parent).restore({"a": jnp.zeros(3)}, 5)
        # A later save must not fail because of it.
        Checkpoints(saved.parent)._retain(5)
    finally:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.write_text(good)


def test_a_file_of_a_checkpoint_that_is_a_device_is_no_file(tmp_path: Path):
    folder = tmp_path / "step_000005"
    folder.mkdir()
    (folder / "data").symlink_to("/dev/zero")
    (folder / MANIFEST_NAME).write_text(
        json.dumps(MANIFESTS["a device"] | {"files": {"data": GOOD}})
    )
    assert "data is missing or cannot be read" in str(manifest_problem(folder, 5))


def test_a_manifest_that_names_too_few_files_is_one_line(saved: Path):
    path, lost = saved / MANIFEST_NAME, saved / "meta" / "metadata"
    good, content = path.read_text(), lost.read_bytes()
    manifest = json.loads(good)
    files = manifest["files"]
    try:
        for part in ("state", "meta"):
            manifest["files"] = {k: v for k, v in files.items() if not k.startswith(part)}
            path.write_text(json.dumps(manifest))
            assert f"names no file of {part}/" in str(manifest_problem(saved, 5))
        manifest["files"] = {k: v for k, v in files.items() if k != "meta/metadata"}
        (saved / "meta" / "_METADATA").write_bytes(b"")
        manifest["files"]["meta/_METADATA"] = hashlib.sha256(b"").hexdigest()
        path.write_text(json.dumps(manifest))
        lost.write_bytes(b"[")
        with pytest.raises(RunError, match="step_000005 cannot be read.*remove it"):
            Checkpoints(saved.parent).restore({"a": jnp.zeros(3)}, 5)
    finally:
        path.write_text(good)
        lost.write_bytes(content)


def test_links_in_the_place_of_folders_are_replaced(tmp_path: Path):
    for name in ("checkpoints/step_000003", "samples/step_000003", "samples/step_000009"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to("nowhere")
    drop_samples_after(tmp_path / "samples", 3)
    assert write_samples(tmp_path / "samples", 3, [record()]).is_dir()
    assert list(sample_steps(tmp_path / "samples")) == [3]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(3, {"a": jnp.zeros(3)}, {"seed": 0})
        assert checkpoints.latest_good() == 3


ODD_NAMES = (
    "step_²", "step_٣", "step_5", "step_0000005", "step_-00001", "step_", "step_000005 (copy)",
    "step_000005.bak", "step_" + "9" * 200, "step_1e6",
)  # fmt: skip


def test_folders_with_odd_names_are_no_steps(tmp_path: Path):
    for name in ODD_NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST_NAME).write_text("{}")
    (tmp_path / "step_000007").symlink_to("nowhere")
    assert [step_number(name) for name in ODD_NAMES] == [None] * len(ODD_NAMES)
    assert (step_number("step_000012"), step_number("step_1234567")) == (12, 1234567)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [] and checkpoints.latest_good() is None
    assert list(sample_steps(tmp_path)) == [7]


BAD_SAMPLES: dict[str, Any] = {
    "caption": 5, "plan_text": None, "caption_index": "x", "sample_index": True,
    "image": "../x.png", "total": "0.5", "scores": [1], "planned": [{"name": "a", "box": [1, 2]}],
    "detections": 5, "advantage": {},
}  # fmt: skip


@pytest.mark.parametrize("key", BAD_SAMPLES)
def test_samples_of_other_types_are_refused_and_named_by_the_report(key: str, tmp_path: Path):
    run = create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False)
    for step in (1, 2):
        write_samples(run.samples, step, [record()])
    file = run.samples / "step_000002" / "samples.jsonl"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: BAD_SAMPLES[key]}) + "\n")
    with pytest.raises(InputError, match="samples in .*step_000002 cannot be read"):
        read_samples(file.parent)
    page = write_report(run.root).read_text(encoding="utf-8")
    assert "step_000002 cannot be read" in page


@pytest.mark.parametrize("what", ["pipe", "device", "dangling", "folder"])
@pytest.mark.parametrize(
    "name", ["summary.json", "config.yaml", "metrics.jsonl", "samples/step_000001/samples.jsonl",
             "samples/step_000001/00_00.png", "scores.jsonl"],
)  # fmt: skip
def test_a_report_of_what_is_no_file(what: str, name: str, tmp_path: Path):
    run = create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False)
    write_samples(run.samples, 1, [record()])
    make(run.root / name, what)
    write_report(run.root)
    problems = load_run(run.root, 100).problems
    assert any(Path(name).parent.name in line or Path(name).name in line for line in problems)


BAD_SUMMARIES: tuple[Any, ...] = (
    [], 5, {"before": 5}, {"before": {"total": "x"}, "after": {"total": [1]}},
    {"before": {"total": 1e308}, "after": {"total": -1e308}, "total_gain_ci95": ["a", None]},
    {"before": {"total": None}, "after": {"total": None}, "total_gain_ci95": "ab", "seconds": "x"},
    {"seconds": 1e308, "steps": {}, "captions": True}, {"before": {}, "after": {}},
    {"before": {"total": 1.0, "<b>": 2}, "after": {"total": 1.0, "<b>": 2}, "total_gain_ci95": [1]},
)  # fmt: skip


@pytest.mark.parametrize("summary", BAD_SUMMARIES)
def test_a_report_of_an_odd_summary(summary: Any, tmp_path: Path):
    run = create_run_dir(tmp_path / "run", "seed: 3\n", may_exist=False)
    lines = [{"step": 10**11, "lr": 1e308}, {"step": 3, "lr": -1e308, "reward/total/mean": 1e308}]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.summary.write_text(json.dumps(summary))
    assert (
        "<b>" not in write_report(run.root).read_text(encoding="utf-8").split("<body>")[-1][:2000]
    )


class Quarter:
    """A judge of one term; counts the samples."""

    terms, identity, seen = ("pi",), "quarter", 0

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        self.seen += len(requests)
        return [JudgeResult({"pi": 0.25}) for _ in requests]


REST = {"detections": [], "rationale": ""}


@pytest.mark.parametrize(
    "value",
    [
        5, [], "x", {}, {"scores": 5}, {"scores": {"pi": "high"}, **REST},
        {"scores": {"pi": None}, **REST}, {"scores": {"sem": 1.0}, **REST},
        {"scores": {"pi": 1.0}, **REST, "detections": [{"box": [1]}]},
    ],
)  # fmt: skip
def test_kept_results_that_are_damaged_are_judged_again(value: Any, tmp_path: Path):
    judge, sample = Quarter(), request("a")
    AnswerCache(tmp_path).add({request_key(sample, judge): value})
    (found,) = CachedJudge(judge, AnswerCache(tmp_path)).judge([sample])
    assert found.scores == {"pi": 0.25} and judge.seen == 1
