"""GRPO at a released model's shapes: its image tokenizer, 384 pixels, every term of rule v2.

The policy is a golden checkpoint; the judges are random models of the right kinds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lookup_engine import plan_text
from taught_qwen import judge_values
from tiny import write_config

from gotr1_jax import cli
from gotr1_jax.grpo import scoring
from gotr1_jax.plan import parse_plan
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.samples import read_samples

TERMS = ("sem", "spa", "ri", "pi", "hps")
PLANNED = plan_text(("cat", (50, 50, 700, 900)), ("dog", (500, 400, 999, 999)))


def test_three_steps_with_every_term(shared: Path, janus_a: Path, tmp_path: Path, monkeypatch):
    captions = str(shared / "prompts" / "t2i_compbench" / "spatial_train.txt")
    root = tmp_path / "run"
    values = {
        "run_dir": str(root),
        "steps": 3,
        "samples_every": 3,
        "policy": {
            "init": str(janus_a),
            "max_prompt_tokens": 512,
            "lora": {"rank": 2, "alpha": 4.0, "targets": ["q", "v"]},
        },
        "captions": {"source": captions},
        "rollout": {
            "captions_per_step": 1,
            "samples_per_caption": 2,
            "max_plan_tokens": 8,
            "guidance": 5.0,
            "decode_batch": 2,
        },
        "judge": judge_values(tmp_path),
        "reward": {"total": "v2", "terms": list(TERMS)},
        "update": {"micro_batch": 2},
        "optimizer": {"learning_rate": 1e-3},
        "checkpoint": {"every": 3},
        "evaluation": {"source": captions, "captions": 1, "samples": 1, "shown": 1},
        "mesh": {"data": 1},
    }
    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
    # A random policy writes no boxes: they stand behind what it wrote.
    monkeypatch.setattr(scoring, "parse_plan", lambda text: parse_plan(f"{text} {PLANNED}"))
    config = str(write_config(tmp_path / "grpo.yaml", values))
    assert cli.run(["train", "grpo", "--config", config]) == 0

    lines = read_metrics(root / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        for term in TERMS:
            assert 0 < line[f"reward/{term}/mean"] < 1, term
        assert line["reward/total/std"] > 0 and line["grad_norm"] > 0
        assert line["judge/failed_frac"] == line["judge/unread_frac"] == 0
        assert line["plan/boxes"] == 2 and line["policy/ratio_max/image"] == 1
        # Replayed at training shapes: cached decoding in float32 came to the same.
        assert line["policy/logp_diff/text"] < 1e-3
        # Of each of two samples sem, pi and where two things are; spa of the boxes they share.
        assert line["judge/questions"] == 9
    page = (root / "report.html").read_text(encoding="utf-8")
    records = read_samples(root / "samples" / "step_000003")
    assert len(records) == 2 and records[0].caption in page
    for record in records:
        assert record.image.shape == (384, 384, 3)
        scores = record.scores
        bracket = (scores["sem"] + scores["spa"]) / 2
        total = np.prod([bracket, scores["pi"], scores["ri"], scores["hps"]])
        assert record.total == pytest.approx(total, rel=1e-5)
        assert [name for name, _ in record.detections] == ["cat", "dog"]
    assert (root / "model" / "config.json").is_file()
