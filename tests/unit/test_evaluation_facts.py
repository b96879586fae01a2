"""What a table says of the judge that a model was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from gotr1_jax.evaluation.facts import facts_lines, training_judge


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(text)
    return folder


HTTP = "judge: {kind: http, http: {url: 'http://h/v1', model: MODEL}}\n"


@pytest.mark.parametrize(
    "model, scorer, same",
    [
        ("org/Judge-7B", "judge http http://h/v1 Judge-7B multiple=28", True),
        ("Judge-7B", "judge qwen2_5_vl /data/judge-7b float32 100 weights=abc", True),
        ("Judge-7B", "judge qwen2_5_vl /data/Judge-72B float32 100 weights=abc", False),
        # Many models lie in a folder of this name.
        ("runs/a/model", "judge qwen2_5_vl runs/b/model float32 100", False),
        ("runs/a/model", "judge qwen2_5_vl /x/a/model float32 100", True),
        ("openai/clip", "CLIP (openai/clip)", True),
    ],
)
def test_which_judge_is_the_same(tmp_path: Path, model: str, scorer: str, same: bool) -> None:
    run = write(tmp_path / "run", HTTP.replace("MODEL", model))
    found = training_judge(run, [scorer, "other"])
    assert found["known"] and found["same"] == ([scorer] if same else [])
    assert found["trained_on"] == [model]


def test_weights_are_known_by_their_digest(tmp_path: Path) -> None:
    run = write(tmp_path / "run", HTTP.replace("MODEL", "a"))
    (run / "inputs.json").write_text('{"judge": "qwen2_5_vl /old/b float32 1 weights=0123abcd"}')
    (run / "eval_before.json").write_text("[broken")
    for scorer, same in (("x /new/c weights=0123abcd", True), ("x /new/c weights=ffff", False)):
        assert bool(training_judge(run, [scorer])["same"]) is same


def test_where_the_run_of_a_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write(tmp_path / "run", HTTP.replace("MODEL", "a"))
    for name in ("model", "model_000500", "checkpoints/10"):
        (run / name).mkdir(parents=True)
        assert training_judge(run / name, ["a"])["same"] == ["a"]
    # A file of this name beside a checkpoint makes no run.
    write(tmp_path, HTTP.replace("MODEL", "a"))
    (tmp_path / "Janus-Pro-1B").mkdir()
    monkeypatch.chdir(tmp_path)
    for place in ("Janus-Pro-1B", "org/name", "embedded", None, tmp_path / "none"):
        assert training_judge(place, ["a"]) == {"known": False, "trained_on": [], "same": []}
    for text, line in (
        ("policy: {init: x}\n", "has no judge: nothing that scores here was trained on"),
        ("judge: {kind: shapes}\n", "trained on the exact judge; that does not score here"),
        ("[broken", "has no judge"),
        (f"policy: {{init: '{run}'}}\njudge: {{kind: shapes}}\n", "trained on the exact judge, a;"),
    ):
        facts = training_judge(write(tmp_path / "other", text), ["b"])
        assert line in facts_lines({"training_judge": facts})[0], text
    loop = write(tmp_path / "loop", f"policy: {{init: '{tmp_path / 'loop'}'}}\n")
    assert training_judge(loop, ["b"])["known"]
