"""Configurations: strict reading, overrides, and combinations that cannot work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import grpo_values, sft_values, write_config

from gotr1_jax import cli
from gotr1_jax.config import _tell_renamed, from_dict, load_config, parse_overrides, to_yaml
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.models.config import LoraConfig, VQConfig
from gotr1_jax.rewards.command import option_names
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.trainer.resume import setting_changes
from gotr1_jax.vq.config import VqTrainConfig

VQ = VQConfig(16, 4, 4, 8, (1, 1), (1, 1), 1, 2)


def load(tmp_path: Path, values: dict[str, Any], *overrides: str) -> GrpoConfig:
    return load_config(GrpoConfig, write_config(tmp_path / "grpo.yaml", values), overrides)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return grpo_values(tmp_path / "checkpoint", tmp_path / "run")


def test_values_defaults_and_overrides(values, tmp_path):
    config = load(
        tmp_path, values,
        "--seed", "7", "--optimizer.learning_rate=1e-3", "--policy.lora.targets", "[q, o]",
        "--mesh.tensor", "2", "--captions.source", "captions.txt",
    )  # fmt: skip
    assert config.seed == 7
    # YAML 1.1 takes 1e-3 for text; it is a number all the same.
    assert config.optimizer == OptimizerConfig(learning_rate=0.001)
    assert config.policy.lora == LoraConfig(2, 4.0, ("q", "o"))
    assert (config.mesh.data, config.mesh.tensor) == (1, 2)
    assert (config.captions.source, config.captions.count) == ("captions.txt", 8)
    assert load(tmp_path, values, "--policy.lora", "null").policy.lora is None
    several = load(tmp_path, values, "--captions.source", "[a.txt, b.jsonl]")
    assert several.captions.source == ("a.txt", "b.jsonl")


def test_an_override_makes_the_section_it_needs(values, tmp_path):
    del values["optimizer"]
    assert load(tmp_path, values, "--optimizer.beta1", "0.5").optimizer.beta1 == 0.5


def test_resolved_configuration_reads_back_equal(values, tmp_path):
    values["policy"]["template"] = "draw 'ø': {caption}\n"
    config = load(tmp_path, values)
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(GrpoConfig, path) == config
    assert "\u00f8" in path.read_text(encoding="utf-8")


FAULTS = {
    "unknown key": ({"stepz": 3}, "unknown configuration key 'stepz'; did you mean 'steps'?"),
    "unknown nested key": (
        {"rollout.guidence": 3.0},
        "unknown configuration key 'rollout.guidence'; did you mean 'rollout.guidance'?",
    ),
    "like no key": ({"mesh.zzz": 1}, "key 'mesh.zzz'; known: data, fsdp, tensor, slices, "),
    "text for a number": ({"steps": "ten"}, "steps is 'ten'; expected int"),
    "yes for a number": ({"steps": True}, "steps is true; expected int"),
    "part of a step": ({"steps": 1.5}, "steps is 1.5; expected int"),
    "quoted number": ({"steps": "3"}, "steps is '3'; expected int without quotes"),
    "nothing for text": ({"run_dir": None}, "run_dir is null; expected str"),
    "blank text": ({"run_dir": " "}, "run_dir is ' '; it must not be empty"),
    "text for a rate": (
        {"optimizer.learning_rate": "fast"},
        "learning_rate is 'fast'; expected",
    ),
    "no such choice": ({"loss.kind": "ppo"}, "loss.kind is 'ppo'; choose from grpo, dapo"),
    "value for a list": ({"reward.terms": "sem"}, "reward.terms is 'sem'; expected names"),
    "neither one nor a list": ({"captions.source": {"a": 1}}, "captions.source is {"),
    "no source": ({"captions.source": []}, "captions.source is empty; name a file"),
    "value for a section": ({"policy": 3}, "policy is 3; expected a section with keys"),
    "unknown term": (
        {"reward.terms": ["sem", "hps"]},
        "reward.terms holds 'hps', but the judge gives sem, spa, ri, pi",
    ),
    "no term": ({"reward.terms": []}, "reward.terms is empty"),
    "group of one": (
        {"rollout.samples_per_caption": 1},
        "rollout.samples_per_caption is 1; it must be in [2, 1048576]; advantages compare",
    ),
    "part of the captions": (
        {"rollout.captions_at_once": 3},
        "rollout.captions_at_once is 3; use a divisor of captions_per_step, which is 2, or 0",
    ),
    "part of a plan's pictures": (
        {"rollout.images_per_plan": 4},
        "rollout.images_per_plan is 4; use a divisor of samples_per_caption, which is 2, or 1",
    ),
    "no picture": (
        {"rollout.images_per_plan": 0},
        "rollout.images_per_plan is 0; it must be in [1, 1048576]",
    ),
    "micro-batch": ({"update.micro_batch": 3}, "update.micro_batch 3 does not divide the 4 rows"),
    "shares of a rollout": (
        {"update.updates_per_rollout": 3},
        "rollout.captions_per_step 2 does not divide by update.updates_per_rollout 3",
    ),
    "kl without weight": ({"loss.kl": "k3"}, "loss.kl is 'k3' with kl_weight 0.0; set both"),
    "weight without kl": ({"loss.kl_weight": 0.1}, "loss.kl is 'none' with kl_weight 0.1"),
    "clip": ({"loss.clip_low": 1.5}, "loss.clip_low is 1.5; it must be in (0, 1]"),
    "guidance": ({"rollout.guidance": 0.5}, "rollout.guidance is 0.5; it must be in [1, 1000]"),
    "no temperature": ({"rollout.image_temperature": 0}, "rollout.image_temperature is 0.0"),
    "no step": ({"steps": 0}, "steps is 0; it must be in [1, 2147483647]"),
    "endless rate": ({"optimizer.learning_rate": float("inf")}, "optimizer.learning_rate is inf"),
    "no rate": ({"optimizer.learning_rate": float("nan")}, "optimizer.learning_rate is nan"),
    "lora target": (
        {"policy.lora.targets": ["qkv"]},
        "lora.targets[0] is 'qkv'; choose one of q, k",
    ),
    "lora rank": ({"policy.lora.rank": 0}, "policy.lora.rank is 0; it must be in [1"),
    "template": (
        {"policy.template": "paint"},
        "policy.template is 'paint'; it must hold {caption} exactly once",
    ),
    "seed": ({"seed": -1}, "seed is -1"),
}


@pytest.mark.parametrize("changes, message", FAULTS.values(), ids=FAULTS.keys())
def test_faults_name_the_field_and_the_fix(values, tmp_path, changes, message):
    for dotted, value in changes.items():
        *parents, last = dotted.split(".")
        section = values
        for part in parents:
            section = section.setdefault(part, {})
        section[last] = value
    with pytest.raises(InputError) as caught:
        load(tmp_path, values)
    assert message in str(caught.value)


def test_a_missing_value_is_named(values, tmp_path):
    del values["run_dir"]
    with pytest.raises(InputError, match="configuration key 'run_dir' is missing"):
        load(tmp_path, values)


def test_faults_of_the_supervised_job(tmp_path):
    good = sft_values(tmp_path / "vq", tmp_path / "run")
    config = from_dict(SftConfig, good)
    for changes, message in (
        ({"init": "somewhere"}, "init and model exclude each other: set exactly one of init"),
        ({"model": None}, "set exactly one of init"),
        ({"micro_batch": 3}, "micro_batch 3 does not divide batch_size 4"),
        ({"text_weight": -1.0}, "text_weight is -1.0; it must be in"),
        ({"text_weight": 0, "image_weight": 0, "boi_weight": 0}, "boi_weight are all 0"),
        ({"caption_dropout": 1.0}, "caption_dropout is 1.0"),
        ({"batch_size": 16}, "batch_size is 16, data.examples is 8"),
        ({"seed": -1}, "seed is -1"),
        ({"add_plan_tokens": True}, "add_plan_tokens is for init"),
    ):
        with pytest.raises(InputError, match=message):
            replace(config, **changes)
    with pytest.raises(InputError, match="source is empty"):
        replace(config.data, source=())
    # Records are counted when they are read.
    replace(config, batch_size=16, micro_batch=4, data=replace(config.data, source="a"))
    # Sizes that no model can have come as the same kind of error.
    good["model"]["decoder"]["head_dim"] = 15
    with pytest.raises(InputError, match="model.decoder.head_dim 15 is odd"):
        from_dict(SftConfig, good)


def test_words_that_are_no_override():
    assert parse_overrides(["--a.b", "3", "--c=x=y", "--d", "[1, 2]", "--e=-1"]) == [
        ("a.b", "3"), ("c", "x=y"), ("d", "[1, 2]"), ("e", "-1"),
    ]  # fmt: skip
    for words, message in (
        (["steps", "3"], "expected --key value, found 'steps'"),
        (["--steps"], "--steps has no value"),
        (["--flag", "--steps", "3"], "--flag has no value; write --flag=VALUE"),
    ):
        with pytest.raises(InputError, match=message):
            parse_overrides(words)


WORDS = {
    "run_dir": [
        "4711",
        "exp #3",
        "yes",
        "010",
        "1e5",
        "null",
        "[a]",
        "'a'",
        "a: b",
        "-x",
        "a=b",
        "~",
    ],
    "policy.template": ["User: {caption}\nx #1: y"],
    "captions.source": ["[ab]*.txt", "a #b", "3"],
    "captions.column": ["", "no"],
}


@pytest.mark.parametrize("path, word", [(p, w) for p, words in WORDS.items() for w in words])
def test_a_text_takes_the_literal_word(values, tmp_path, path, word):
    for given in ([f"--{path}", word], [f"--{path}={word}"]):
        config = found = load(tmp_path, values, *given)
        for part in path.split("."):
            found = getattr(found, part)
        assert found == word and type(found) is str
        (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
        assert load_config(GrpoConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    "path, word, value",
    [
        ("seed", "010", 10),
        ("mesh.data", "-1", -1),
        ("optimizer.learning_rate", "1e-5", 1e-5),
        ("optimizer.weight_decay", "0", 0.0),
        ("checkpoint.keep_best", "off", False),
        ("policy.lora", "null", None),
        ("policy.lora", "{rank: 8, targets: [q, v]}", LoraConfig(8, targets=("q", "v"))),
        ("policy.lora.targets", "[q, 'o']", ("q", "o")),
        ("captions.source", "[a.txt, 4711, 'b, c']", ("a.txt", "4711", "b, c")),
        ("update.refill_rounds", "3", 3),
        ("seed", "1:30", "seed is '1:30'; expected int"),
        ("seed", "1e3", "seed is 1e3; expected int"),
        ("seed", "", "seed is ''; expected int"),
        ("seed", "9" * 5000, "seed is 999"),
        ("checkpoint.keep_best", "1", "checkpoint.keep_best is 1; expected bool"),
        ("policy.lora.targets", "q,", "policy.lora.targets is 'q,'; expected a list, such as"),
        ("policy.lora", "{rank: 4", "policy.lora is '{rank: 4'; expected a section"),
        ("policy.lora", "{rank: 4, rank: 5}", "the key 'rank' stands in line 1 already"),
        ("reward.x", "null", "unknown configuration key 'reward.x'"),
        ("learning_rate", "1", "did you mean 'optimizer.learning_rate'?"),
        ("run_dir", "a\0b", "it must be UTF-8 without NUL"),
        ("run_dir", "", "run_dir is ''; it must not be empty"),
    ],
)
def test_the_schema_reads_the_words_of_the_command_line(values, tmp_path, path, word, value):
    if isinstance(value, str):
        with pytest.raises(InputError) as caught:
            load(tmp_path, values, f"--{path}", word)
        assert value in str(caught.value) and len(str(caught.value)) < 500
        return
    found = load(tmp_path, values, f"--{path}", word)
    for part in path.replace("refill", "resample").split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


def test_an_override_replaces_what_the_file_says_under_an_older_name(values, tmp_path):
    values["update"]["refill_rounds"] = 2
    for name in ("resample_rounds", "refill_rounds"):
        assert load(tmp_path, values, f"--update.{name}", "5").update.resample_rounds == 5


@pytest.mark.parametrize("old", [{"advantage": "mean"}, {"kind": "dapo", "advantage": "mean"}])
def test_a_key_that_moved_to_another_section_stays_valid(values, tmp_path, old):
    """In a file, in a run directory and as an override; a resume then sees no change."""
    values["loss"] = old
    found = load(tmp_path, values)
    assert (found.advantage.kind, found.loss.kind) == ("mean", old.get("kind", "grpo"))
    assert setting_changes(found, load(tmp_path, values, "--advantage.kind", "mean")) == []
    for name in ("loss.advantage", "advantage.kind"):
        assert load(tmp_path, values, f"--{name}", "leave_one_out").advantage.kind[:5] == "leave"
    for given in (("--loss", "{advantage: raft}"), ("--advantage.scope", "segment")):
        whole = load(tmp_path, values, "--loss", "{advantage: leave_one_out, kind: dapo}", *given)
        assert whole.advantage.kind == ("raft" if given[0] == "--loss" else "leave_one_out")
        assert whole.loss.kind == ("grpo" if given[0] == "--loss" else "dapo")
    whole = load(tmp_path, values, "--advantage", "{scope: segment}", "--loss", "{advantage: raft}")
    assert (whole.advantage.kind, whole.advantage.scope) == ("raft", "segment")
    values["advantage"] = {"kind": "mean"}
    with pytest.raises(InputError, match="advantage.kind is given twice, also by its old name"):
        load(tmp_path, values)
    values["advantage"] = "mean"
    with pytest.raises(InputError, match="advantage is 'mean'; expected a section"):
        load(tmp_path, {**values, "loss": {}})


def test_an_override_below_a_value(values, tmp_path):
    with pytest.raises(InputError, match=r"--seed.x: seed is a single value \(0\), not a section"):
        load(tmp_path, {**values, "seed": 0}, "--seed.x", "1")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: [1", "is not valid YAML"),
        (b"- 1\n- 2\n", "must hold keys and values, found ..1"),
        (b"run_dir: \xff\xfe\n", "is not UTF-8 text"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_config(GrpoConfig, path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot read configuration .*nowhere.yaml"):
        load_config(GrpoConfig, tmp_path / "nowhere.yaml")


def test_command_line_ends_with_2_and_one_line(values, tmp_path, capsys, monkeypatch):
    def touched(*_: Any) -> None:
        raise AssertionError("a device was touched")

    monkeypatch.setattr("gotr1_jax.parallel.startup.start_devices", touched)
    path = write_config(tmp_path / "grpo.yaml", values)
    words = ["train", "grpo", "--config", str(path)]
    for more in (["--stepz", "3"], ["--rollout.samples_per_caption", "1"], ["--seed"], ["x"]):
        assert cli.run([*words, *more]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("gotr1: error: "), lines
    assert not (tmp_path / "run").exists()
    assert yaml.safe_load(path.read_text()) == values


def test_an_older_name_of_a_key_is_read_with_one_line(values, tmp_path, caplog):
    update = {**values["update"], "refill_rounds": 3}
    _tell_renamed.cache_clear()  # of tests before
    config = load(tmp_path, {**values, "update": update})
    assert load(tmp_path, {**values, "update": update}) == config  # a process tells it once
    assert config.update.resample_rounds == 3
    line = "configuration key update.refill_rounds is called update.resample_rounds now"
    assert [record.getMessage() for record in caplog.records] == [line]
    with pytest.raises(InputError, match="update.resample_rounds is given twice"):
        load(tmp_path, {**values, "update": {**update, "resample_rounds": 2}})
    old = VqTrainConfig(run_dir="run", model=VQ, images=9, eval_images=8)
    written = yaml.safe_load(to_yaml(old))
    renamed = {"pictures": written.pop("images"), "eval_pictures": written.pop("eval_images")}
    assert from_dict(VqTrainConfig, {**written, **renamed}) == old


def test_only_a_training_ends_as_a_process_of_several(monkeypatch):
    ended: list[int] = []
    monkeypatch.setattr(cli, "run", lambda _: 1)
    monkeypatch.setattr("gotr1_jax.parallel.processes.exit_process", ended.append)
    for words in (["generate", "--prompt", "train"], ["report", "train"], ["train", "vq"]):
        with pytest.raises(SystemExit):
            cli.main(words)
    assert ended == [1]


def test_ctrl_c_waits_for_no_thread_of_others(monkeypatch):
    """A judge's function may hold threads that wait for a server; Python joins them at exit."""
    monkeypatch.setattr(cli, "run", lambda _: 130)
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with pytest.raises(SystemExit):
        cli.main(["judge"])
    assert ended == [130]


def test_keys_of_configurations_are_no_abbreviated_options():
    words = ["compile", "--config", "a", "--topology", "b", "--judge", "{}", "--json"]
    options, rest = cli.build_parser().parse_known_args(words)
    assert (options.judge_size, options.json, rest) == (None, True, ["--judge", "{}"])


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--prompt", "a cat", "--out", ""],
        ["generate", "--prompt", "a cat", "--out= "],
        ["train", "grpo", "--config", ""],
        ["judge", "--input", "", "--out", "scores.jsonl"],
        ["report", ""],
    ],
)
def test_an_empty_path_is_not_the_working_directory(words: list[str], capsys) -> None:
    """It is mostly a variable of a script that was not set."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(words)
    assert exit_.value.code == 2
    assert "a path must not be empty" in capsys.readouterr().err.splitlines()[-1]


def test_options_of_the_judge_are_fields() -> None:
    assert not [name for name in option_names() if name.endswith("may_change")]
