"""Ranges of settings: each interval by hand, and that no number of any configuration is without."""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pytest

import gotr1_jax
from gotr1_jax.ablate.config import AblationConfig
from gotr1_jax.config import CheckedConfig, field_kinds, from_dict, parse_overrides, read_value
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.grpo.config import GrpoConfig, RolloutConfig
from gotr1_jax.io.strict_yaml import read_yaml
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.limits import Range, Text
from gotr1_jax.rewards.command import JudgeJob
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.trainer.config import CheckpointConfig, JobConfig, OptimizerConfig
from gotr1_jax.vq.config import VqTrainConfig

JOBS = (GrpoConfig, SftConfig, VqTrainConfig, JudgeSftConfig, AblationConfig, JudgeJob)
NO_NUMBERS = ("nan", ".nan", ".inf", "-.inf", "inf", "Infinity", "1e39", "-1e400")


def numbers(kind: Any, limits: tuple[Any, ...] = ()) -> Iterator[tuple[type, tuple[Any, ...]]]:
    """Every int and float in an annotated type, with its limits."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) is Annotated:
        yield from numbers(args[0], args[1:])
    elif typing.get_origin(kind) is not typing.Literal:
        for part in args:
            yield from numbers(part)
        if kind in (int, float):
            yield kind, limits


def configurations() -> list[type]:
    """Every configuration class of the package."""
    for module in pkgutil.walk_packages(gotr1_jax.__path__, "gotr1_jax."):
        importlib.import_module(module.name)

    def below(schema: type) -> Iterator[type]:
        for child in schema.__subclasses__():
            yield child
            yield from below(child)

    return [found for found in below(CheckedConfig) if found.__module__.startswith("gotr1_jax")]


def float_paths(schema: type, where: str = "", below: tuple[type, ...] = ()) -> Iterator[str]:
    """The dotted paths of the floats of a configuration and its sections."""
    for name, kind in field_kinds(schema).items():
        if any(base is float for base, _ in numbers(kind)):
            yield where + name
        origin = typing.get_origin(kind)
        lists = origin is tuple
        for part in () if lists else (kind, *typing.get_args(kind)):
            if isinstance(part, type) and dataclasses.is_dataclass(part) and part not in below:
                inside = f"{name}.x" if origin is Mapping else name  # under a name of one's own
                yield from float_paths(part, f"{where}{inside}.", (*below, schema))


@pytest.mark.parametrize(
    ("limit", "inside", "outside"),
    [
        (Range("[0, 1)"), (0, 0.0, 0.9999), (1, 1.0, -1e-9, 0.99999999999)),
        (Range("(0, inf)"), (1e-37, 1, 1e38), (0, -1, 1e-50, 1e39, math.inf, math.nan)),
        (Range("(-inf, inf)"), (-1e38, 0), (math.inf, -math.inf, math.nan)),
        (Range("[1, 5]", also=(-1,)), (-1, 1, 5), (0, -2, 6, 10**400)),
    ],
)
def test_intervals(limit: Range, inside: Any, outside: Any) -> None:
    assert [value for value in inside if limit.complaint(value)] == []
    assert [value for value in outside if not limit.complaint(value)] == []


def test_a_limit_says_what_it_wants() -> None:
    assert Range("[0, 1)").complaint(2.0) == "it must be in [0, 1)"
    assert Range("[1, 9]", also=(-1,), why="so").complaint(0) == "it must be in [1, 9], or -1; so"
    assert Range("(0, inf)").complaint(0) == "it must be above 0, and finite"
    assert Range("[2, inf)").complaint(math.inf) == "it must be 2 or more, and finite"
    assert Text(once="{x}").complaint("{x}{x}") == "it must hold {x} exactly once"
    assert Text().complaint(" \t") == "it must not be empty"
    for interval in ("0, 1", "[0 1]", "[a, 1]", ""):
        with pytest.raises(ValueError):
            Range(interval)


def test_no_number_is_without_a_range() -> None:
    found = configurations()
    assert len(found) > 40
    without, admits = [], []
    for schema in found:
        for name, kind in field_kinds(schema).items():
            for base, limits in numbers(kind):
                if not any(isinstance(limit, Range) for limit in limits):
                    without.append(f"{schema.__name__}.{name}")
                if base is float and any(
                    limit.complaint(value) is None
                    for limit in limits
                    for value in (math.nan, math.inf, -math.inf)
                ):
                    admits.append(f"{schema.__name__}.{name}")
    assert without == [] and admits == []


def test_classes_called_config_are_checked() -> None:
    checked = configurations()
    unchecked = [
        f"{module.name}.{name}"
        for module in pkgutil.walk_packages(gotr1_jax.__path__, "gotr1_jax.")
        for name, found in vars(importlib.import_module(module.name)).items()
        if isinstance(found, type) and name.endswith("Config") and found is not CheckedConfig
        if found.__module__.startswith("gotr1_jax") and found not in checked
    ]
    assert unchecked == []


@pytest.mark.parametrize("schema", JOBS, ids=lambda schema: schema.__name__)
def test_no_float_may_be_no_number(schema: type) -> None:
    paths = list(float_paths(schema))
    assert len(paths) >= {AblationConfig: 0, JudgeJob: 2}.get(schema, 12)
    for path in paths:
        *sections, last = path.split(".")
        for word in NO_NUMBERS:
            text = "".join("{" + part + ": " for part in sections) + f"{{{last}: {word}}}"
            values = read_yaml(text + "}" * len(sections), "file")
            for given in ((values, ()), ({}, parse_overrides([f"--{path}", word]))):
                with pytest.raises(InputError) as caught:
                    from_dict(schema, given[0], overrides=given[1])
                names = (f"{path} is ", f"{path}[0] is ")  # the only item of a list
                assert str(caught.value).startswith(names), caught.value


@pytest.mark.parametrize(
    ("schema", "path", "value"),
    [
        (GrpoConfig, "optimizer.beta1", "2.0"),
        (GrpoConfig, "optimizer.beta2", "1"),
        (GrpoConfig, "optimizer.weight_decay", "-0.1"),
        (GrpoConfig, "rollout.captions_per_step", "1000000000"),
        (GrpoConfig, "rollout.guidance", "-1"),
        (GrpoConfig, "update.max_bad_updates", "0"),
        (GrpoConfig, "update.resample_rounds", "-1"),
        (GrpoConfig, "evaluation.every", "-1"),
        (GrpoConfig, "evaluation.shown", "-1"),
        (GrpoConfig, "evaluation.captions", "1000000000"),
        (GrpoConfig, "captions.count", "1000000000"),
        (GrpoConfig, "loss.text_weight", "-1"),
        (GrpoConfig, "mesh.cpu_devices", "0"),
        (GrpoConfig, "mesh.fsdp", "0"),
        (GrpoConfig, "mesh.fsdp", "-2"),
        (GrpoConfig, "policy.template", "paint it"),
        (GrpoConfig, "resume", ""),
        (SftConfig, "template", "paint it"),
        (SftConfig, "log_every", "0"),
        (SftConfig, "data.examples", "1000000000000"),
        (VqTrainConfig, "export_dtype", "bfloat61"),
        (VqTrainConfig, "crop.steps", "-1"),
        (VqTrainConfig, "crop.batch_size", "0"),
        (VqTrainConfig, "weights.l2", "-1"),
        (VqTrainConfig, "restart.decay", "1"),
        (VqTrainConfig, "images", "1000000000"),
        (JudgeJob, "judge.questions.canvas", "0"),
    ],
)
def test_values_that_make_no_sense_are_refused(schema: type, path: str, value: str) -> None:
    with pytest.raises(InputError) as caught:
        from_dict(schema, {}, overrides=[(path, value)])
    assert str(caught.value).startswith(f"{path} is "), caught.value
    assert "\n" not in str(caught.value)


def test_what_is_made_in_python_is_checked_too() -> None:
    for make, message in (
        (lambda: OptimizerConfig(beta1=1.0), r"^beta1 is 1.0; it must be in \[0, 1\)"),
        (lambda: CheckpointConfig(keep=0), "^keep is 0"),
        (lambda: JobConfig(run_dir="run", steps=True), "^steps is True; expected int"),
        (
            lambda: OptimizerConfig(learning_rate=0.5, weight_decay=2.0),
            "^weight_decay is 2.0; times",
        ),
        (
            lambda: OptimizerConfig("muon", 0.5, weight_decay=3.0),
            "^weight_decay is 3.0; times muon_learning_rate 0.5",
        ),
        (lambda: OptimizerConfig(muon_learning_rate=0.5), "^muon_learning_rate is 0.5, but kind"),
        (lambda: RolloutConfig(2**16, 2**16), "^captions_per_step x samples_per_caption is 42949"),
        (lambda: dataclasses.replace(OptimizerConfig(), clip_norm=math.nan), "^clip_norm is nan"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    # An integer is a number, and one of thousands of digits is shown by its size.
    assert OptimizerConfig(clip_norm=1).clip_norm == 1
    with pytest.raises(InputError, match=r"^x is an integer of \d+ bits; it must be"):
        read_value(Annotated[int, Range("[0, 1]")], 10**5000, "x")
