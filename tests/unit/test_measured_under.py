"""What an evaluation was measured under is told in the same words by every version."""

from __future__ import annotations

import json
from pathlib import Path

from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.measure import digest, measured_under
from gotr1_jax.rewards.soft_tifa import SoftTifaConfig
from gotr1_jax.rewards.terms import TermConfig

_CONFIG = """
run_dir: run
steps: 1
policy: {init: embedded, max_prompt_tokens: 48}
rollout: {max_plan_tokens: 60, guidance: 3.0}
judge: {kind: http, http: {url: http://h/v1, model: m}}
reward: {total: sem, terms: {sem: {scale: 2}}}
evaluation: {captions: 2, samples: 2}
"""
# As version 0.1 wrote it.
_TERM = {
    "judge": "main", "python": None, "http": None, "hps": None, "pickscore": None,
    "clipscore": None, "shapes": None, "pairwise": None, "weight": 1.0, "scale": 2.0,
    "clip": None, "meaning": "", "stage": None,
}  # fmt: skip
_SAMPLING = {
    "max_plan_tokens": 60, "guidance": 3.0, "text_temperature": 1.0, "image_temperature": 1.0,
    "top_k": 0, "top_p": 1.0, "greedy": False, "logp_mode": "guided", "plan_bucket": 128,
    "image_bucket": 96,
}  # fmt: skip


def test_a_run_of_an_earlier_version_keeps_its_evaluation_and_its_best(tmp_path: Path) -> None:
    """Otherwise its policy would be evaluated again, and its best checkpoint forgotten."""
    path = tmp_path / "grpo.yaml"
    path.write_text(_CONFIG)
    found = measured_under(GrpoConfig.from_file(path), ("a",), "j", "i")
    assert found["reward"] == f"sem of sem {json.dumps({'sem': _TERM})}"
    assert found["sampling"] == json.dumps(_SAMPLING)
    assert digest(found) == "77a352ae8212059a"
    asked = TermConfig(soft_tifa=SoftTifaConfig(questions="q.jsonl")).described()
    assert asked["soft_tifa"]["questions"] == "q.jsonl"
