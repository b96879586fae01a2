"""generation_config.json: what is read, refused and written, and what comes before what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gotr1_jax.config import load_config, to_yaml
from gotr1_jax.convert.find import EMBEDDED
from gotr1_jax.convert.generation_config import (
    GENERATION_FILE,
    GenerationConfig,
    generation_json,
    read_canvas,
    read_generation_config,
    resolve_sampling,
    write_canvas,
)
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.generate.config import BUILT_IN, GenerateConfig, check_settings_file
from gotr1_jax.grpo import sampled
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE

OWN = {
    "guidance_scale": 3,
    "temperature": 0.9,
    "image_temperature": 0.8,
    "max_plan_tokens": 80,
    "template": "Paint {caption}:",
}


def write(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / GENERATION_FILE).write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return folder


def grpo(folder: Path, **more: Any) -> GrpoConfig:
    values = {"run_dir": str(folder / "run"), "policy": {"init": str(folder)}, **more}
    path = folder / "grpo.yaml"
    path.write_text(json.dumps(values))
    return GrpoConfig.from_file(path)


def test_the_sketches_that_a_judge_was_taught(tmp_path: Path) -> None:
    assert read_canvas(tmp_path) is None
    write(tmp_path, {"do_sample": False})
    write_canvas(tmp_path, 192)
    assert read_canvas(tmp_path) == 192
    assert read_generation_config(tmp_path) == GenerationConfig(greedy=True)  # which stays
    write(tmp_path, {"canvas": 3})
    with pytest.raises(ConfigError, match="generation_config.json: canvas is 3.*remove the key"):
        read_canvas(tmp_path)


# What is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, {}),
        (OWN, {"guidance": 3.0, "text_temperature": 0.9, "image_temperature": 0.8,
               "max_plan_tokens": 80, "template": "Paint {caption}:"}),
        # A foreign file: of a text model, with keys of its own and null for what is not stated.
        ({"_from_model_config": True, "bos_token_id": 100000, "eos_token_id": [1, 2],
          "do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": None,
          "max_new_tokens": 300, "generation_kwargs": {"boi_token_id": 3},
          "transformers_version": "4.56.0"},
         {"text_temperature": 0.7, "image_temperature": 0.7, "top_p": 0.95, "greedy": False,
          "max_plan_tokens": 300}),
        ({"do_sample": False, "max_new_tokens": 300, "max_plan_tokens": 20},
         {"greedy": True, "max_plan_tokens": 20}),
    ],
)  # fmt: skip
def test_what_a_file_states(
    content: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    found = read_generation_config(write(tmp_path, content))
    assert found.stated == expected
    # What is written beside the file's own keys states the same, and keeps those.
    again = generation_json(found, content)
    assert read_generation_config(write(tmp_path, again)) == found
    assert again.keys() >= content.keys()


def test_a_temperature_of_the_image_alone_is_written_alone() -> None:
    assert generation_json(GenerationConfig(image_temperature=0.8), {"x": 1}) == {
        "x": 1,
        "image_temperature": 0.8,
    }


def test_nothing_is_stated_without_a_file(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == GenerationConfig()
    assert read_generation_config(tmp_path / "nowhere") == GenerationConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"temperature": 1', "is not JSON"),
        ("[1, 2]", "is not a JSON object"),
        ('{"top_p": NaN}', "not finite"),
        ({"temperature": "0.7"}, "temperature is '0.7'; expected float without quotes"),
        ({"temperature": 0}, "temperature is 0.0; it must be in [0.0001, 10000]"),
        ({"image_temperature": -1}, "image_temperature is -1.0"),
        ({"guidance_scale": 5000}, "guidance_scale is 5000.0; it must be in [0, 1000]"),
        ({"guidance_scale": True}, "guidance_scale is True; expected float"),
        ({"top_p": 0}, "top_p is 0.0; it must be in (0, 1]"),
        ({"top_k": 1.5}, "top_k is 1.5; expected int"),
        ({"max_new_tokens": 0, "max_plan_tokens": 8}, "max_new_tokens is 0"),
        ({"max_plan_tokens": 10**30}, "max_plan_tokens is"),
        ({"do_sample": "no"}, "do_sample is 'no'; expected bool"),
        ({"template": "Paint."}, "template is 'Paint.'; it must hold {caption} exactly once"),
        ({"template": ["{caption}"]}, "template is ['{caption}']; expected str"),
    ],
)
def test_what_cannot_be_meant_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_generation_config(folder)
    error = str(caught.value)
    assert message in error and str(folder / GENERATION_FILE) in error and "\n" not in error
    if isinstance(content, dict):
        assert error.endswith("correct it or remove the key from the file")


# What comes before what ---------------------------------------------------------------------


def test_a_checkpoint_without_the_file_is_sampled_as_before(tmp_path: Path) -> None:
    config = resolve_sampling(GenerateConfig(tmp_path, prompt="a"), tmp_path, BUILT_IN)
    assert config.sampling == SamplerConfig() == GenerateConfig(tmp_path, prompt="a").sampling
    assert (config.cfg, config.max_plan_tokens, config.temperature) == (5.0, 600, 1.0)
    assert config.template == GOTR1_TEMPLATE
    job = sampled.resolve_job(grpo(tmp_path))
    assert (job.rollout.guidance, job.rollout.max_plan_tokens) == (5.0, 600)
    assert job.rollout.sampling == SamplerConfig() and job.policy.template == GOTR1_TEMPLATE


def test_generate_takes_what_it_is_not_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gotr1_jax")
    folder = write(tmp_path, {**OWN, "do_sample": False})
    config = resolve_sampling(GenerateConfig(tmp_path, prompt="a", cfg=2.0), folder, BUILT_IN)
    assert config.sampling == SamplerConfig(80, 2.0, 0.9, 0.8, greedy=True)
    assert config.template == "Paint {caption}:"
    assert caplog.messages == [
        f"as {folder}/{GENERATION_FILE} says: text_temperature 0.9, image_temperature 0.8, "
        "greedy true, max_plan_tokens 80, template 'Paint {caption}:'"
    ]
    # --temperature is of both phases; --image-temperature of one.
    both = resolve_sampling(GenerateConfig(tmp_path, prompt="a", temperature=0.5), folder, BUILT_IN)
    assert (both.temperature, both.image_temperature) == (0.5, 0.5)
    one = GenerateConfig(tmp_path, prompt="a", image_temperature=0.5, greedy=False)
    one = resolve_sampling(one, folder, BUILT_IN)
    assert (one.temperature, one.image_temperature, one.greedy) == (0.9, 0.5, False)


def test_a_rollout_takes_what_it_is_not_told_and_states_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gotr1_jax")
    write(tmp_path, {**OWN, "top_p": 0.9})
    job = sampled.resolve_job(grpo(tmp_path, rollout={"guidance": 2.0}))
    assert job.rollout.sampling == SamplerConfig(80, 2.0, 0.9, 0.8)
    assert job.policy.template == "Paint {caption}:"
    assert "guidance" not in caplog.messages[0] and "max_plan_tokens 80" in caplog.messages[0]
    assert caplog.messages[1].startswith("top_p of ")
    # Stored and read again, nothing is left to a checkpoint.
    stored = tmp_path / "stored.yaml"
    stored.write_text(to_yaml(job))
    again = load_config(GrpoConfig, stored)
    assert again == job and sampled.resolve_job(again) == job
    assert sampled.trained_sampling(job).stated == {
        "guidance": 2.0, "text_temperature": 0.9, "image_temperature": 0.8, "max_plan_tokens": 80,
        "template": "Paint {caption}:", "greedy": False, "top_k": 0, "top_p": 1.0,
    }  # fmt: skip


def test_what_a_job_cannot_do_names_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {"guidance_scale": 0.5})
    assert resolve_sampling(GenerateConfig(tmp_path, prompt="a"), folder, BUILT_IN).cfg == 0.5
    with pytest.raises(InputError) as caught:
        sampled.resolve_job(grpo(tmp_path))
    assert str(caught.value) == (
        f"rollout.guidance is 0.5; it must be in [1, 1000], as {folder}/{GENERATION_FILE} says"
    )
    assert sampled.resolve_job(grpo(tmp_path, rollout={"guidance": 4})).rollout.guidance == 4


def test_a_resumed_run_goes_on_as_it_began(tmp_path: Path) -> None:
    """Also a run of an earlier version, whose stored settings are all numbers."""
    write(tmp_path, OWN)
    run = tmp_path / "run"
    old = replace(grpo(tmp_path), run_dir=str(run))
    (run / "checkpoints" / "step_000002").mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(old.sampled_as(sampled.BUILT_IN)))
    # Without a finished checkpoint the run begins again.
    assert sampled.resolve_job(grpo(tmp_path)).rollout.guidance == 3.0
    (run / "checkpoints" / "step_000002" / "manifest.json").write_text("{}")
    again = sampled.resolve_job(grpo(tmp_path))
    assert again.sampled == sampled.BUILT_IN
    other = grpo(tmp_path, run_dir=str(tmp_path / "other"), resume=str(run))
    assert sampled.resolve_job(other).rollout.guidance == 5.0
    told = grpo(tmp_path, rollout={"guidance": 2})
    assert sampled.resolve_job(told).rollout.guidance == 2.0  # which the run then refuses
    never = grpo(tmp_path, resume="never")
    assert sampled.resolve_job(never).rollout.guidance == 3.0


# What is written ----------------------------------------------------------------------------


def test_what_supervised_training_writes() -> None:
    config = SftConfig(run_dir="run", vq="vq", init="start", template="A {caption}")
    assert config.wanted.stated == {"max_plan_tokens": 79, "template": "A {caption}"}
    guided = replace(config, sampling=GenerationConfig(guidance=3.0, max_plan_tokens=60))
    assert guided.wanted.stated == {
        "guidance": 3.0, "max_plan_tokens": 60, "template": "A {caption}"
    }  # fmt: skip
    with pytest.raises(ConfigError, match="sampling.template is set"):
        replace(config, sampling=GenerationConfig(template="{caption}"))


def test_the_embedded_checkpoint_states_all() -> None:
    found = read_generation_config(EMBEDDED)
    assert found.stated.keys() == vars(GenerationConfig()).keys()
    assert found.template == GOTR1_TEMPLATE
    # What transformers reads: no cut of its own default of 50.
    assert read_json_object(EMBEDDED / GENERATION_FILE)["top_k"] == 0


def test_a_folder_of_an_earlier_version_is_continued(tmp_path: Path) -> None:
    old = {"cfg": 5.0, "temperature": 0.7}
    (tmp_path / "generation.json").write_text(json.dumps(old))
    check_settings_file(tmp_path / "generation.json", {**old, "image_temperature": 0.7})
    with pytest.raises(InputError, match="image_temperature 0.7, not 0.5"):
        check_settings_file(tmp_path / "generation.json", {**old, "image_temperature": 0.5})
