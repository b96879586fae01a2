"""GRPO on one device, on a mesh of eight, and in two processes of four devices: the same run.

Also if a step's captions are sampled in parts. Patience ends each after step 3, with the weights of
step 1.

Exact: captions, plans, image tokens and rewards. Up to rounding: losses, gradients and parameters,
whose sums have another order.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from several import Group, saved_arrays
from tiny import compiled_once, grpo_values, steady_metrics, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.grpo.evaluate import Evaluation
from gotr1_jax.trainer.samples import read_samples

STEPS = 3
# `liked` rises in the first evaluation, then falls.
WATCHED = """
from pathlib import Path


def red(requests):
    return [r.image[..., 0].mean() for r in requests]


def liked(requests):
    run = Path({run!r})
    if not (run / "eval_before.json").exists():
        return [0.5] * len(requests)
    return [0.9 - 0.3 * len(list(run.glob("eval_step_*.json")))] * len(requests)
"""
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def values(checkpoint: Path, run: Path, mesh: dict[str, int]) -> dict[str, Any]:
    """Plain values of the job: 4 captions x 2 samples, adapters, the shapes world's judge."""
    given = grpo_values(checkpoint, run)
    given |= {"steps": STEPS + 2, "samples_every": 1, "mesh": {"cpu_devices": 4, **mesh}}
    given["rollout"] |= {"captions_per_step": 4, "samples_per_caption": 2, "decode_batch": 8}
    given["update"] |= {"micro_batch": 8}
    # What looks at all tokens of a mini-batch or of a sample; step 2 has the sampler of step 1.
    given["rollout"] |= {"refresh_every": 2}
    given["loss"] |= {
        "kind": "gmpo",
        "importance": {"kind": "sequence_truncate", "high": 1.1},
        "tokens": {"text_share": 0.6, "image_share": 0.5},
        "entropy_bonus": {"text_weight": 0.2, "image_weight": 0.1},
    }
    # Statistics of the whole batch, whichever process scored its samples.
    given["advantage"] = {"kind": "gdpo", "scope": "segment"}
    given["evaluation"] |= {"captions": 4, "samples": 2, "shown": 4}
    # Each process scores its samples, and all decide by the scores of all.
    source = run.with_name(f"watched_{run.name}.py")
    source.write_text(WATCHED.format(run=str(run)))
    patience = {"term": "liked", "fall": 0.1, "evaluations": 2, "action": "restore_best"}
    judges = {name: {"python": f"{source}:{name}"} for name in ("red", "liked")}
    given["evaluation"] |= {"every": 1, "judges": judges, "patience": patience}
    return given


def train(checkpoint: Path, run: Path, mesh: dict[str, int]) -> int:
    """The job in this process, which has eight devices already."""
    config = write_config(run.with_suffix(".yaml"), values(checkpoint, run, mesh))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gotr1_jax.parallel.startup.start_devices", lambda *_: None)
        return cli.run(["train", "grpo", "--config", str(config)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("meshes")
    with compiled_once(folder / "programs"):
        yield folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return write_shapes(folder / "checkpoint")


@pytest.fixture(scope="module")
def one(folder: Path, checkpoint: Path) -> Path:
    run = folder / "one"
    assert train(checkpoint, run, {"data": 1}) == 0
    return run


@pytest.fixture(scope="module")
def two(folder: Path, checkpoint: Path) -> Path:
    run = folder / "two"
    given = values(checkpoint, run, MESH)
    # Half a step's captions at once, which changes nothing either.
    given["rollout"] |= {"captions_at_once": 2}
    config = write_config(folder / "two.yaml", given)
    with Group(["train", "grpo", "--config", str(config)], folder) as group:
        assert group.end() == [0, 0], group.said(0) + group.said(1)
    return run


def assert_same_run(run: Path, other: Path) -> None:
    lines, others = steady_metrics(run), steady_metrics(other)
    assert [line["step"] for line in others] == [1, 2, 3] and len(lines) == 3
    assert max(line["reward/total/std"] for line in others) > 0, "nothing was learned from"
    for line, wanted in zip(lines, others):
        for name in wanted:
            # Means over levels of 0 to 255 differ with the rounding of an image.
            atol = 0.25 if name.startswith("watched/") else 1e-4
            np.testing.assert_allclose(line[name], wanted[name], atol=atol, err_msg=name)
    assert others[1]["watched/red"] > 0 and "diversity/images" in others[0]
    arrays, wanted = saved_arrays(run, STEPS), saved_arrays(other, STEPS)
    assert arrays.keys() == wanted.keys()
    for path in wanted:
        np.testing.assert_allclose(arrays[path], wanted[path], atol=1e-4, err_msg=path)
    assert any(np.any(x) for path, x in wanted.items() if "params" in path and "lora_b" in path)
    assert_ended_alike(run, other)


def assert_ended_alike(run: Path, other: Path) -> None:
    """By patience after step 3, with the weights of step 1."""
    mine, wanted = (json.loads((root / "summary.json").read_text()) for root in (run, other))
    assert mine["patience"] == pytest.approx(wanted["patience"], abs=0.05)
    ended = mine["patience"]
    assert (ended["step"], ended["best_step"], ended["weights_of_step"]) == (3, 1, 1)
    best, after = (
        Evaluation.from_json(json.loads((run / f"eval_{name}.json").read_text()))
        for name in ("step_000001", "after")
    )
    np.testing.assert_array_equal(after.total, best.total)
    np.testing.assert_allclose(mine["after"]["total"], wanted["after"]["total"], atol=1e-4)


def assert_same_samples(run: Path, other: Path, rows: Sequence[int], first: int = 1) -> None:
    """These of the 8 rows of every step from the first one; `run` has no others."""
    for step in range(first, STEPS + 1):
        folder = f"step_{step:06d}"
        found = read_samples(run / "samples" / folder)
        wanted = read_samples(other / "samples" / folder)
        assert len(found) == len(rows) and len(wanted) == 8
        for a, b in zip(found, [wanted[row] for row in rows]):
            assert (a.caption, a.plan_text, a.scores) == (b.caption, b.plan_text, b.scores)
            # Another token is another patch; rounding differs by one level.
            assert np.abs(a.image.astype(int) - b.image).max() <= 1


def test_eight_devices_are_as_one(folder: Path, checkpoint: Path, one: Path) -> None:
    run = folder / "eight"
    assert train(checkpoint, run, MESH) == 0
    assert_same_run(run, one)
    assert_same_samples(run, one, rows=range(8))


def test_two_processes_are_as_one(one: Path, two: Path) -> None:
    assert_same_run(two, one)
    # Process 0 writes its own rows: the first half of each of the two parts that are drawn.
    assert_same_samples(two, one, rows=(0, 1, 4, 5))
    assert not [path.name for path in two.rglob("*") if "tmp" in path.name]
    assert (two / "report.html").is_file() and (two / "model" / "config.json").is_file()


def test_separate_meshes_continue_from_a_checkpoint(
    folder: Path, checkpoint: Path, one: Path, two: Path
) -> None:
    """Four devices train and four others sample, from step 1 of another mesh."""
    run = folder / "moved"
    shutil.copytree(two, run)
    for step in range(2, STEPS + 1):
        shutil.rmtree(run / "checkpoints" / f"step_{step:06d}")
    mesh = {"data": 1, "fsdp": 4, "rollout": {"data": 2, "tensor": 2}}
    assert train(checkpoint, run, mesh) == 0
    assert_same_run(run, one)
    assert_same_samples(run, one, rows=range(8), first=2)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < line["time/weights"] < line["time/rollout"] for line in lines[1:])
