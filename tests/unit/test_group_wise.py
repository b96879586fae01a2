"""Judges that compare the samples of a caption get whole groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from lookup_engine import request
from PIL import Image

from gotr1_jax.grpo.config import RewardConfig
from gotr1_jax.grpo.prompts import Prompt, Prompts
from gotr1_jax.grpo.rollout import RolloutWorker
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.rewards.base import JudgeRequest, JudgeResult, group_places, is_group_wise
from gotr1_jax.rewards.composite import CachedJudge, CompositeJudge, request_keys
from gotr1_jax.rewards.judging import judge_samples
from gotr1_jax.rewards.python import PythonJudge
from gotr1_jax.rewards.stored_samples import find_samples
from gotr1_jax.rewards.terms import as_terms
from gotr1_jax.vlm_engine.answer_cache import AnswerCache


class Brightest:
    """1 for the brightest sample of a group, 0 for the others."""

    terms, identity, group_wise = ("pi",), "brightest", True

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        self.calls.append([r.group for r in requests])
        best = {
            i
            for places in group_places(r.group for r in requests)
            for i in [max(places, key=lambda i: requests[i].image.mean())]
        }
        return [JudgeResult({"pi": float(i in best)}) for i in range(len(requests))]


class PointWise:
    terms, identity = ("ri",), "point-wise"

    def judge(self, requests: Sequence[JudgeRequest]) -> list[JudgeResult]:
        return [JudgeResult({"ri": r.image.mean() / 255}) for r in requests]


def group(number: int, *shades: int) -> list[JudgeRequest]:
    return [replace(request("a", shade=shade), group=number) for shade in shades]


def scores(results: Sequence[JudgeResult]) -> list[float]:
    return [result.scores["pi"] for result in results]


def test_a_composite_is_group_wise_where_one_judge_is() -> None:
    both = CompositeJudge([(PointWise(), ["ri"]), (Brightest(), ["pi"])])
    assert is_group_wise(both) and not is_group_wise(CompositeJudge([(PointWise(), ["ri"])]))
    assert scores(both.judge(group(0, 1, 2) + group(1, 9, 8))) == [0, 1, 1, 0]


def test_a_cache_keeps_a_sample_with_its_group(tmp_path: Path) -> None:
    """The sample of shade 5 wins in one group and loses in the other; neither is mixed up."""
    inner = Brightest()
    judge = CachedJudge(inner, AnswerCache(tmp_path))
    assert is_group_wise(judge)
    assert scores(judge.judge(group(0, 5, 1) + group(1, 9, 5))) == [1, 0, 1, 0]
    assert scores(judge.judge(group(0, 9, 5) + group(1, 5, 1) + group(2, 5, 7))) == [
        1,
        0,
        1,
        0,
        0,
        1,
    ]
    assert inner.calls == [[0, 0, 1, 1], [2, 2]]  # whole groups are known, whatever their number
    # Equal samples in one group have results of their own.
    twice = request_keys(group(0, 5, 5), inner)
    assert len(set(twice)) == 2 and len(set(request_keys(group(0, 5, 5), PointWise()))) == 1


def test_a_function_says_so_itself_or_by_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two_functions.py").write_text(
        "def first(requests): return [{'pi': 1.0} for r in requests]\n"
        "def second(requests): return [{'pi': 1.0} for r in requests]\n"
        "second.group_wise = True\n"
    )
    assert not is_group_wise(PythonJudge("two_functions:first", ["pi"]))
    assert is_group_wise(PythonJudge("two_functions:first", ["pi"], group_wise=True))
    assert is_group_wise(PythonJudge("two_functions:second", ["pi"]))


def write_stored(folder: Path, *samples: tuple[int, str, int]) -> Path:
    """A file of samples of (caption index, caption, shade)."""
    lines = []
    for number, (index, caption, shade) in enumerate(samples):
        Image.new("RGB", (4, 4), (shade,) * 3).save(folder / f"{number:02d}.png")
        sample = {
            "caption": caption,
            "caption_index": index,
            "plan_text": "",
            "image": f"{number:02d}.png",
        }
        lines.append(json.dumps(sample))
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_stored_samples_of_a_caption_are_judged_together(tmp_path: Path) -> None:
    """Groups of 3, 2 and 2 in batches of 4; caption a comes twice, and is not mixed up."""
    path = write_stored(
        tmp_path,
        (0, "a", 1), (1, "b", 9), (0, "a", 3), (1, "b", 8), (2, "a", 50), (0, "a", 2), (2, "a", 60),
    )  # fmt: skip
    judge, out = Brightest(), tmp_path / "scores.jsonl"
    lines = judge_samples(judge, find_samples(path), out, batch=4)
    assert [line["scores"]["pi"] for line in lines] == [0, 1, 1, 0, 0, 0, 1]
    assert [line["sample"] for line in lines] == [f"{i:02d}" for i in range(7)]
    assert judge.calls == [[0, 0, 0], [0, 0, 1, 1]]
    assert judge_samples(judge, find_samples(path), out, batch=4) == lines
    assert len(judge.calls) == 2
    # Another picture in one group: this group is judged again, whole.
    Image.new("RGB", (4, 4), (4,) * 3).save(tmp_path / "00.png")
    lines = judge_samples(judge, find_samples(path), out, batch=4)
    assert [line["scores"]["pi"] for line in lines] == [1, 1, 0, 0, 0, 0, 1]
    assert judge.calls[2:] == [[0, 0, 0]]


def test_a_rollout_gives_the_place_of_the_caption() -> None:
    judge = Brightest()
    rows = SimpleNamespace(
        plan_ids_BT=jnp.zeros((4, 3), jnp.int32),
        plan_len_B=jnp.full(4, 2, jnp.int32),
        plan_mask_BT=jnp.ones((4, 3), bool),
        image_ids_BU=jnp.asarray([[5], [7], [9], [8]], jnp.int32),
    )
    decoder: Any = SimpleNamespace(
        begin=lambda ids: lambda: [np.full((2, 2, 3), i, np.uint8) for (i,) in ids]
    )
    tokenizer: Any = SimpleNamespace(decode=lambda ids: "a plan")
    reward = RewardConfig(terms=as_terms(("pi",)), total="sum")
    sampler: Any = None
    worker = RolloutWorker(sampler, decoder, judge, reward, tokenizer, make_mesh(), 4)
    prompts = Prompts(tuple(Prompt(i, "a cat", (0,)) for i in (7, 3)), 16, 0)
    rollout: Any = SimpleNamespace(rows=rows)
    scored = worker.score(rollout, prompts)
    assert judge.calls == [[0, 0, 1, 1]]
    assert scored.rewards_PG.tolist() == [[0, 1], [1, 0]]
