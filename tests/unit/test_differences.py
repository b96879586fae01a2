"""What a configuration sets, shown without its defaults."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gotr1_jax.config import load_config
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.jobs import job_schema, jobs_of_file
from gotr1_jax.rewards.judge_config import CacheConfig
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.differences import differing_yaml

BASE = GrpoConfig(run_dir="run")


def test_only_what_differs_is_shown():
    assert differing_yaml(BASE) == "run_dir: run\n"
    changed = replace(
        BASE,
        seed=3,
        report_to=("wandb", "tensorboard"),
        optimizer=OptimizerConfig(learning_rate=2e-5),
        judge=replace(BASE.judge, cache=CacheConfig(folder="kept")),
    )
    assert yaml.safe_load(differing_yaml(changed)) == {
        "run_dir": "run",
        "seed": 3,
        "report_to": ["wandb", "tensorboard"],
        "optimizer": {"learning_rate": 2e-5},
        "judge": {"cache": {"folder": "kept"}},
    }


@pytest.mark.parametrize("name", ["shapes_grpo", "shapes_sft", "shapes_vq", "shapes_judge"])
def test_what_is_shown_of_a_shipped_configuration_is_that_configuration(name, tmp_path):
    schema = job_schema(jobs_of_file(Path(name))[0])
    config = load_config(schema, Path(name))
    file = tmp_path / "shown.yaml"
    file.write_text(differing_yaml(config))
    assert load_config(schema, file) == config
