"""Judges samples on disk and writes a line of JSON for each; a stopped job continues."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gotr1_jax.errors import InputError
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.reading import parse_json, read_bytes
from gotr1_jax.io.write_errors import raise_write_errors
from gotr1_jax.parallel.progress import Progress
from gotr1_jax.rewards.base import (
    Judge,
    JudgeRequest,
    boxes_to_json,
    group_places,
    is_group_wise,
    rename_old_keys,
    result_from_json,
    result_to_json,
)
from gotr1_jax.rewards.composite import request_keys
from gotr1_jax.rewards.stored_samples import StoredSample

BATCH = 64
PARTIAL = ".partial"


def judge_samples(
    judge: Judge, samples: Sequence[StoredSample], out: Path, batch: int = BATCH
) -> list[dict[str, Any]]:
    """Judges the samples without scores and writes `out`; returns its lines, in the samples' order.

    `batch` samples are judged at once. A group-wise judge gets those of a caption of a step
    together, and as many such groups as fit into a batch.

    Lines of `out` and of out.partial are kept where the judge and the sample's content are the
    same and no score is missing; of a group-wise judge where that is so of the whole group.

    Raises:
        InputError: a file holds scores of another judge or of samples that are not in the input,
            or an image cannot be read.
        RunError: a file cannot be written, or the judge failed for good.
    """
    partial = out.with_name(out.name + PARTIAL)
    stored = _read_scores(judge, {sample.name for sample in samples}, (out, partial))
    lines: dict[int, dict[str, Any]] = {}
    with raise_write_errors(partial):
        out.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(partial, "a", encoding="utf-8") as file,
            Progress("judge", len(samples), unit="sample") as progress,
        ):
            file.write("\n")  # ends a line that was cut off
            for places in sample_batches(judge, samples, batch):
                judged = _judge_batch(judge, [samples[i] for i in places], stored)
                text = "".join(
                    json.dumps(line) + "\n"
                    for line in judged
                    if stored.get(line["sample"]) is not line
                )
                file.write(text)
                file.flush()
                lines |= zip(places, judged)
                progress.update(len(lines))
    in_order = [lines[i] for i in range(len(samples))]
    atomic_write(out, "".join(json.dumps(line) + "\n" for line in in_order))
    partial.unlink(missing_ok=True)
    return in_order


def sample_batches(judge: Judge, samples: Sequence[StoredSample], batch: int) -> list[list[int]]:
    """The places of the samples that are judged at once."""
    if not is_group_wise(judge):
        places = range(len(samples))
        return [list(places[start : start + batch]) for start in places[::batch]]
    batches: list[list[int]] = []
    for group in group_places(sample.group for sample in samples):
        if batches and len(batches[-1]) + len(group) <= batch:
            batches[-1] += group
        else:
            batches.append(group)
    return batches


def read_requests(samples: Sequence[StoredSample]) -> list[JudgeRequest]:
    """What a judge gets of samples, with their groups numbered; InputError as of the images."""
    groups = group_places(sample.group for sample in samples)
    number = {i: n for n, places in enumerate(groups) for i in places}
    return [replace(s.read_request(), group=number[i]) for i, s in enumerate(samples)]


def _judge_batch(
    judge: Judge, samples: Sequence[StoredSample], stored: Mapping[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """A line for each sample, the stored one where its key is the same."""
    requests = read_requests(samples)
    keys = request_keys(requests, judge)
    known = [stored.get(s.name, {}).get("key") == key for s, key in zip(samples, keys)]
    if is_group_wise(judge):
        changed = {request.group for request, same in zip(requests, known) if not same}
        known = [request.group not in changed for request in requests]
    new = [request for request, is_known in zip(requests, known) if not is_known]
    results = iter(judge.judge(new) if new else ())
    return [
        stored[sample.name] if is_known else {
            "sample": sample.name,
            "key": key,
            "judge": judge.identity,
            "caption": sample.caption,
            "plan_text": sample.plan_text,
            "image": str(sample.image),
            "planned": boxes_to_json(request.plan.boxes),
            **result_to_json(next(results)),
        }
        for sample, request, key, is_known in zip(samples, requests, keys, known)
    ]  # fmt: skip


def _read_scores(judge: Judge, names: set[str], files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Lines of an earlier command without a missing score, by their sample's name."""
    found: dict[str, dict[str, Any]] = {}
    for path in files:
        if not path.exists():
            continue
        # Of a stopped command the last line can end within a character.
        text = read_bytes(path, "scores").decode("utf-8", errors="replace")
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                value = rename_old_keys(parse_json(line, "it", allow_nan=True))
                name, identity = value["sample"], value["judge"]
                scores = result_from_json(value).scores.values()
                is_whole = all(map(math.isfinite, scores)) and isinstance(value["key"], str)
            except (InputError, KeyError, ValueError, TypeError, AttributeError, OverflowError):
                if path.suffix == PARTIAL or not line.strip():
                    continue  # the last line of a stopped command
                raise InputError(
                    f"{path}, line {number} is no line of scores; choose another --out"
                ) from None
            if identity != judge.identity or name not in names:
                what = "of another judge" if name in names else "of samples that are not in --input"
                raise InputError(f"{path} holds scores {what}; choose another --out")
            if is_whole:
                found[name] = value
    return found
