"""The supervised job: a new model learns, resumes exactly, and is one to start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import (
    SHAPES,
    assert_equal_trees,
    compiled_once,
    host,
    interrupt_after,
    record_saves,
    sft_values,
    steady_metrics,
    write_config,
    write_shapes,
)

from gotr1_jax import cli
from gotr1_jax.convert.checkpoint import load_checkpoint
from gotr1_jax.convert.generation_config import read_generation_config
from gotr1_jax.report.page import write_report
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.number_features import number_features
from gotr1_jax.trainer.samples import read_samples, sample_steps


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield write_shapes(tmp_path_factory.mktemp("tiny") / "checkpoint")


def run(values: dict[str, Any], *words: str) -> int:
    path = Path(values["run_dir"]).parent / "sft.yaml"
    with pytest.MonkeyPatch.context() as patch:
        # The devices of this process are set already.
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        return cli.run(["train", "sft", "--config", str(write_config(path, values)), *words])


def new_model_values(vq: Path, run_dir: Path) -> dict[str, Any]:
    """A new model with features of numbers, trained by Muon."""
    values = sft_values(vq, run_dir)
    values["model"]["number_features"] = True
    values["optimizer"]["kind"] = "muon"
    values["export_every"] = 2
    values["samples"] = {"every": 2, "captions": 8}
    return values


@pytest.fixture(scope="module")
def finished(vq: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Any]]:
    """A whole run, and the states that it saved."""
    root = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        saved = record_saves(patch)
        assert run(new_model_values(vq, root)) == 0
    return root, saved


def test_metrics_and_model(finished, vq):
    root, saved = finished
    page = (root / "report.html").read_text()
    assert page == write_report(root).read_text() and "not finished" not in page
    assert "<h2>Samples over the steps</h2>" in page and "<b>nats a token</b>" in page
    assert "steps: 4" in (root / "config_differing.yaml").read_text()
    samples = [(step, read_samples(path)) for step, path in sample_steps(root / "samples").items()]
    assert [(step, len(records)) for step, records in samples] == [(1, 8), (2, 8), (4, 8)]
    captions = {tuple(record.caption for record in records) for _, records in samples}
    assert len(captions) == 1 and len(set(*captions)) == 8
    assert sorted(saved) == [2, 4]
    lines = read_metrics(root / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert set(line) >= {
            "loss", "nats/text", "nats/image", "nats/boi", "grad_norm", "lr", "updates/skipped",
        }  # fmt: skip
        assert line["updates/skipped"] == 0 and line["grad_norm"] > 0
    # New weights know nothing: their logits have a variance of about 1, which costs half a nat.
    assert lines[0]["nats/text"] == pytest.approx(np.log(SHAPES.decoder.vocab_size) + 0.5, abs=0.6)
    assert lines[0]["nats/image"] == pytest.approx(np.log(32) + 0.5, abs=0.6)
    assert lines[-1]["nats/text"] < lines[0]["nats/text"] - 0.1

    parts = ("policy", "vq", "understanding")
    model = load_checkpoint(root / "model", parts=parts)
    assert model.config == SHAPES
    # The image tokenizer went through unchanged, the policy is the last state; both float32.
    given = load_checkpoint(vq, parts=("vq",)).vq
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=0)  # noqa: E731
    jax.tree.map(near, host(model.vq), host(given))
    jax.tree.map(near, host(model.policy), saved[4].params)
    # The model half way is one as well.
    half = load_checkpoint(root / "model_000002").policy
    jax.tree.map(near, host(half), saved[2].params)
    assert not (root / "model_000004").exists()
    assert model.tokenizer.encode_prompt("a red circle")


def test_embeddings_of_numbers_began_as_features(finished):
    """Those of numbers that no batch held had no gradient and are as they began."""
    root, saved = finished
    table = np.asarray(saved[4].params["decoder"]["embed"]["table"].get_value())
    ids = load_checkpoint(root / "model").tokenizer.number_ids
    key = jax.random.fold_in(jax.random.key(0), 1)
    features = number_features(np.asarray(list(ids)), table.shape[1], key)
    rows = table[list(ids.values())]
    cosine = (rows * features).sum(1) / np.linalg.norm(rows, axis=1)
    assert len(ids) > 10 and (cosine > 1 - 1e-5).sum() >= 3


def test_interrupted_and_resumed_is_as_never_interrupted(finished, vq, monkeypatch, capsys):
    root, saved = finished
    # The same images: read from the cache, not tokenised again.
    values = new_model_values(vq, root.parent / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert run(values) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "gotr1: error: interrupted"
    assert not (root.parent / "resumed" / "model").exists()
    again = record_saves(monkeypatch)
    assert run(values) == 0
    assert sorted(again) == [4]
    assert_equal_trees(again[4], saved[4])
    assert steady_metrics(root.parent / "resumed") == steady_metrics(root)


def test_goes_on_from_a_model_and_exports_elsewhere(finished, vq, tmp_path, monkeypatch):
    root, _ = finished
    saved = record_saves(monkeypatch)
    values = sft_values(vq, tmp_path / "run")
    values |= {"model": None, "init": str(root / "model"), "steps": 1, "seed": 3}
    values["optimizer"]["learning_rate"] = 1e-30
    values["sampling"] = {"guidance": 3.0}
    assert run(values, "--export_dir", str(tmp_path / "out"), "--micro_batch", "4") == 0
    # What the first training stated goes along, with what this one states.
    first, second = (read_generation_config(p) for p in (root / "model", tmp_path / "out"))
    longest = values["data"]["max_plan_tokens"] - 1
    assert first.stated == {"template": GOTR1_TEMPLATE, "max_plan_tokens": longest}
    assert second == replace(first, guidance=3.0)
    start, out = (load_checkpoint(p).policy for p in (root / "model", tmp_path / "out"))
    still = partial(np.testing.assert_allclose, rtol=0, atol=1e-20)
    jax.tree.map(still, saved[1].params, host(start))
    jax.tree.map(still, host(out), host(start))
    assert not (tmp_path / "run" / "model").exists()


def test_bad_input_leaves_nothing(vq, tmp_path, capsys):
    values = sft_values(tmp_path / "nowhere", tmp_path / "run")
    assert run(values) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    values = sft_values(vq, tmp_path / "run")
    assert run(values, "--model", "null", "--init", str(tmp_path / "nowhere")) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert run(values, "--model.decoder.vocab_size", "300") == 2
    assert "model.decoder.vocab_size is 300, the tokenizer has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
