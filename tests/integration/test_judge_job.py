"""The job that teaches a judge: a new model learns, resumes exactly, and is one to start from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from record_files import image as png
from tiny import (
    assert_equal_trees,
    compiled_once,
    host,
    interrupt_after,
    record_saves,
    steady_metrics,
    write_config,
)
from tiny_judge import judge_values

from gotr1_jax import cli
from gotr1_jax.config import from_dict
from gotr1_jax.convert.generation_config import read_canvas
from gotr1_jax.convert.qwen_vl import QwenCheckpoint, load_qwen
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.judge_sft.dataset import fit_source, make_judge_batches
from gotr1_jax.judge_sft.model import initial_state, judge_shapes, prepare_judge
from gotr1_jax.judge_sft.update import make_judge_step
from gotr1_jax.parallel.mesh import addressable_rows, make_mesh
from gotr1_jax.parallel.placement import put_addressable_rows
from gotr1_jax.report.page import write_report
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.number_features import number_features
from gotr1_jax.trainer.optimizer import make_optimizer


def run(values: dict[str, Any], *words: str) -> int:
    path = Path(values["run_dir"]).parent / "judge.yaml"
    with pytest.MonkeyPatch.context() as patch:
        # The devices of this process are set already.
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        return cli.run(["train", "judge", "--config", str(write_config(path, values)), *words])


def load(folder: Path) -> QwenCheckpoint:
    return load_qwen(folder, jnp.float32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[int, Any]]]:
    """A whole run, and the states that it saved."""
    root = tmp_path_factory.mktemp("judge") / "run"
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        with pytest.MonkeyPatch.context() as patch:
            saved = record_saves(patch)
            assert run(judge_values(root)) == 0
        yield root, saved


def test_metrics_and_model(finished: tuple[Path, dict[int, Any]]) -> None:
    root, saved = finished
    assert "not finished" not in write_report(root).read_text()
    assert sorted(saved) == [2, 4]
    lines = read_metrics(root / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    keys = {"loss", "nats/answer", "right/tokens", "right/answers", "grad_norm", "lr"}
    assert all(keys <= set(line) for line in lines)
    model = load(root / "model")
    # New weights know nothing; four steps teach them the commonest tokens of answers.
    assert lines[0]["nats/answer"] == pytest.approx(np.log(model.config.text.vocab_size), abs=0.3)
    assert lines[-1]["nats/answer"] < lines[0]["nats/answer"] - 0.3
    jax.tree.map(partial(np.testing.assert_array_equal), host(model.state), saved[4].params)
    assert len(model.tokenizer.encode("999")) == 1
    assert model.config.text.vocab_size % 64 == 0 and model.config.text.tie_embeddings
    assert (root / "model" / "chat_template.jinja").is_file()
    assert read_canvas(root / "model") == 112


def test_interrupted_and_resumed_is_as_never_interrupted(
    finished: tuple[Path, dict[int, Any]], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root, saved = finished
    values = judge_values(root.parent / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(patch, 3)
        assert run(values) == 130
    assert not (root.parent / "resumed" / "model").exists()
    again = record_saves(monkeypatch)
    assert run(values) == 0
    assert sorted(again) == [4]
    assert_equal_trees(again[4], saved[4])
    assert steady_metrics(root.parent / "resumed") == steady_metrics(root)
    capsys.readouterr()
    assert run(values, "--data.shapes.searches", "2") == 2
    assert "data.shapes.searches" in capsys.readouterr().err


def write_own_records(folder: Path) -> Path:
    for i in range(2):
        (folder / f"{i}.png").write_bytes(png(i))
    texts = [("Red?", "yes", "0.png"), ("Same?", "no", ["0.png", "1.png"]), ("1 + 1?", "2", None)]
    lines = [json.dumps({"question": q, "answer": a, "image": i}) for q, a, i in texts * 3]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "records.jsonl"


def test_adapters_on_a_model_taught_by_records_are_merged(
    finished: tuple[Path, dict[int, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = finished
    saved = record_saves(monkeypatch)
    values = judge_values(tmp_path / "run")
    values |= {"model": None, "init": str(root / "model"), "steps": 2, "mean_over": "answers"}
    values |= {"lora": {"rank": 2, "alpha": 4.0, "targets": ["q", "down"]}, "remat": "full"}
    values["data"] = {"source": str(write_own_records(tmp_path)), "max_tokens": 64}
    values["data"] |= {"max_answer_tokens": 4}
    assert run(values, "--export_dir", str(tmp_path / "out")) == 0
    base, out, trained = load(root / "model").state, load(tmp_path / "out").state, saved[2].params
    for name, change in (("q", True), ("down", True), ("k", False)):
        before, after = (host(s["text"]["layers"][name]["kernel"].get_value()) for s in (base, out))
        if not change:
            np.testing.assert_array_equal(after, before)
            continue
        a, b = (trained["text"]["layers"][name][f"lora_{x}"].get_value() for x in "ab")
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(after, before + 2.0 * a @ b, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, host(out["vision"]), host(base["vision"]))


def test_eight_devices_are_as_one(tmp_path: Path) -> None:
    config = from_dict(JudgeSftConfig, judge_values(tmp_path / "run"))
    initial, source = prepare_judge(config, tmp_path)
    source, shape = fit_source(config.data, source, initial.tokenizer, initial.preprocessing)

    def update(mesh: Mesh) -> tuple[Any, list[float]]:
        rows = addressable_rows(config.batch_size, mesh)
        made = make_judge_batches(
            config, source, shape, initial.tokenizer, initial.preprocessing, rows
        )
        shapes, optimizer = (
            judge_shapes(config, initial.config, mesh),
            make_optimizer(config.optimizer, config.steps),
        )
        state, frozen = initial_state(config, initial, shapes, optimizer, mesh)
        step = make_judge_step(shapes.graphdef, optimizer, shape.answer_tokens, "tokens", 4)
        batch = put_addressable_rows(next(iter(made)), config.batch_size, mesh)
        state, metrics = step(state, frozen, batch)
        return host(nnx.to_pure_dict(state.params)), [float(x) for x in jax.tree.leaves(metrics)]

    one, values = update(make_mesh(devices=jax.devices()[:1]))
    eight, same = update(make_mesh(2, 2, 2))
    np.testing.assert_allclose(same, values, rtol=1e-4, atol=1e-5)
    # Adam divides by its own size: what is near zero may turn, by at most twice the rate.
    apart = [np.abs(a - b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(eight))]
    assert max(x.max() for x in apart) <= 0.021
    assert np.mean(np.concatenate([x.ravel() for x in apart])) < 1e-4


def test_bad_input_leaves_nothing(tmp_path: Path, capsys: Any) -> None:
    root = tmp_path / "run"
    values = judge_values(root)
    values["data"]["shapes"]["examples"] = 8
    few, sixteen = write_own_records(tmp_path), ("--batch_size", "16", "--micro_batch", "16")
    for words, message in (
        (("--init", str(tmp_path)), "init and model exclude each other"),
        (("--model", "null", "--init", str(tmp_path / "no")), "no checkpoint at"),
        (("--micro_batch", "3"), "micro_batch 3 does not divide batch_size 8"),
        (("--batch_size", "16", "--micro_batch", "16"), "data.shapes.examples is 8"),
        (("--data.max_tokens", "49"), "questions are too long"),
        (("--data.max_tokens", "48"), "a row holds a question too"),
        (("--data.shapes.vq", str(tmp_path / "vq")), "no checkpoint at"),
        (("--data.shapes.samples", f"[{tmp_path / 'none'}]"), "nothing to judge at"),
        (("--data.source", str(tmp_path / "none.jsonl")), "none.jsonl"),
        (("--model.text.hidden_size", "20"), "hidden_size 20"),
        (("--data.source", str(few), *sixteen), "a batch of 16 examples cannot be drawn from 9"),
    ):
        assert run(values, *words) == 2, words
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error, error
        assert not root.exists()


def test_a_tower_learns_to_see_before_questions_are_asked(tmp_path: Path, capsys: Any) -> None:
    tower = judge_values(tmp_path / "tower") | {"objective": "objects", "steps": 2}
    assert run(tower) == 0
    lines = read_metrics(tmp_path / "tower" / "metrics.jsonl")
    assert {"loss", "right/units", "right/shape", "thousandths/box"} <= set(lines[-1])
    page = (tmp_path / "tower" / "report.html").read_text()
    assert "thousandths/box" in page
    first = load(tmp_path / "tower" / "model")
    assert set(nnx.to_pure_dict(first.state)) == {"vision", "text"}  # without the head
    values = judge_values(tmp_path / "run") | {"model": None, "steps": 1}
    values["init"] = str(tmp_path / "tower" / "model")
    assert run(values) == 0
    assert load(tmp_path / "run" / "model").tokenizer.vocab_size == first.tokenizer.vocab_size
    for other, message in (
        ({"optimizer": {"weight_decay": 0.01}}, "the text model has no gradient"),
        ({"model": None, "init": values["init"]}, "objective: objects is for a new model"),
        ({"data": {"source": str(write_own_records(tmp_path))}}, "which alone knows all objects"),
    ):
        bad = tower | {"run_dir": str(tmp_path / "bad")} | other
        assert run(bad) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "bad").exists()


def test_embeddings_of_numbers_begin_as_features(tmp_path: Path) -> None:
    values = judge_values(tmp_path / "run")
    values["model"] = {**values["model"], "number_features": True}
    config, mesh = from_dict(JudgeSftConfig, values), make_mesh(devices=jax.devices()[:1])
    initial, _ = prepare_judge(config, tmp_path)
    shapes, optimizer = (
        judge_shapes(config, initial.config, mesh),
        make_optimizer(config.optimizer, 4),
    )
    state, _ = initial_state(config, initial, shapes, optimizer, mesh)
    ids = initial.tokenizer.number_ids
    assert list(ids) == list(range(1000))
    table = np.asarray(state.params["text"]["embed"]["table"].get_value())
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    features = np.asarray(number_features(np.arange(1000), table.shape[1], key))
    rows = table[list(ids.values())]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(rows, features, atol=1e-5)
