"""Batches of rows, their size, templates and fingerprints of `gotr1 generate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_checkpoints import TINY

from gotr1_jax.errors import InputError
from gotr1_jax.generate import batches
from gotr1_jax.generate.batches import (
    BatchSizes,
    SampleTask,
    batch_rows,
    batch_sizes,
    bytes_per_row,
    make_batches,
    plan_width,
    prompt_width,
    rows_that_fit,
)
from gotr1_jax.generate.config import GenerateConfig, fingerprint, read_template
from gotr1_jax.generate.layouts import write_grid
from gotr1_jax.generate.tasks import CaptionTask, read_tasks
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.tokenizers.janus import GOTR1_TEMPLATE, JANUS_TEMPLATE, REASONGEN_RL_TEMPLATE


def row(caption: int, index: int, prompt: int, plan: int = 0) -> SampleTask:
    """A row of a prompt and a plan of so many tokens."""
    task = CaptionTask(caption, "a", "", 9, 0)
    return SampleTask(task, index, [1] * prompt, [2] * plan)


def test_batches_hold_every_row_once_and_like_widths() -> None:
    rng = np.random.default_rng(0)
    rows = [row(p, i, n) for p, n in enumerate(rng.integers(3, 70, 40)) for i in range(3)]
    found = list(make_batches(iter(rows), 7, 600, 128))
    assert {batch.prompt_ids_BC.shape[0] for batch in found} == {7}
    drawn = [(r.task.index, r.index) for batch in found for r in batch.samples]
    assert sorted(drawn) == [(p, i) for p in range(40) for i in range(3)]
    assert [len(batch.samples) for batch in found] == [7] * (120 // 7) + [120 % 7]
    for batch in found:
        n = len(batch.samples)
        assert batch.plan_ids_BT is None
        assert batch.prompt_len_B[:n].tolist() == [len(r.prompt_ids) for r in batch.samples]
        assert (batch.prompt_ids_BC.sum(axis=1) == batch.prompt_len_B).all()
        assert batch.caption_index_B[:n].tolist() == [r.task.index for r in batch.samples]
        assert batch.sample_index_B[:n].tolist() == [r.index for r in batch.samples]
        assert batch.prompt_ids_BC.shape[1] in (16, 32, 64, 128)
    # All but the leftovers: no wider than their own longest prompt asks for.
    tight = [b for b in found if b.prompt_ids_BC.shape[1] == prompt_width(max(b.prompt_len_B))]
    assert len(tight) == len(found)


def test_batches_do_not_wait_for_the_end() -> None:
    read = 0

    def endless() -> Any:
        nonlocal read
        while True:
            read += 1
            yield row(read, 0, 20 if read % 50 else 100)

    found = make_batches(endless(), 8, 600, 128)
    assert [len(next(found).samples) for _ in range(20)] == [8] * 20
    assert read < 200


def test_given_plans_are_laid_out_as_sampled_ones_are() -> None:
    widths = [plan_width(n, 300, 128) for n in (1, 2, 129, 130, 257, 258, 301)]
    assert widths == [129, 129, 129, 257, 257, 301, 301]
    (batch,) = make_batches([row(0, 0, 5, 1), row(0, 1, 5, 140)], 4, 600, 128)
    assert batch.plan_ids_BT is not None and batch.plan_len_B is not None
    assert batch.plan_ids_BT.shape == (4, 257)
    assert batch.plan_len_B.tolist() == [1, 140, 140, 140]


def test_sizes_of_the_longest() -> None:
    assert batch_sizes([row(0, 0, 40), row(1, 0, 5)], 600, 128) == BatchSizes(2, 64, 601)
    assert batch_sizes([row(0, 0, 40, 3), row(1, 0, 5, 4)], 600, 128) == BatchSizes(2, 64, 129)
    assert batch_sizes([], 600, 128).rows == 0


@pytest.mark.parametrize(
    ("rows", "most", "parts", "expected"),
    [
        (1, 32, 1, 1),
        (33, 32, 1, 17),
        (64, 32, 1, 32),
        (5, 32, 8, 8),
        (100, 20, 8, 16),
        (3, 1, 8, 8),
    ],
)
def test_batches_are_equally_full(rows: int, most: int, parts: int, expected: int) -> None:
    assert batch_rows(rows, most, parts) == expected


def device(free: int | None) -> Any:
    stats = None if free is None else {"bytes_limit": free + 5000, "bytes_in_use": 5000}
    return SimpleNamespace(platform="gpu", memory_stats=lambda: stats)


def test_rows_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gigabyte = 10**9
    assert rows_that_fit(TINY, gigabyte, [device(20 * gigabyte)]) == 13
    assert rows_that_fit(TINY, gigabyte, [device(20 * gigabyte), device(10 * gigabyte)]) == 12
    assert rows_that_fit(TINY, gigabyte, [device(0)]) == 1
    assert rows_that_fit(TINY, 1, [device(gigabyte)] * 2) == 256
    assert rows_that_fit(TINY, 1, [device(None)]) == 8
    cpu = SimpleNamespace(platform="cpu")
    monkeypatch.setattr(batches, "_free_memory", lambda *_: 20 * gigabyte)
    assert rows_that_fit(TINY, gigabyte, [cpu]) == 13
    assert rows_that_fit(TINY, gigabyte, [cpu] * 4) == 12
    assert rows_that_fit(TINY, 1, [cpu] * 4) == 32


def test_bytes_of_a_row() -> None:
    # 2 layers x (keys, values) x 2 heads x 8 x 4 bytes x (16 + 601 + 2 * 16) slots: the cache.
    cache = 2 * 2 * 2 * 8 * 4 * (16 + 601 + 2 * TINY.num_image_tokens)
    sizes, guided = BatchSizes(1, 16, 601), SamplerConfig(guidance=5.0)
    sampled = bytes_per_row(TINY, sizes, guided, 4, False)
    assert cache + 16 * 1024 < sampled < cache + 16 * 1024 + 50_000
    assert bytes_per_row(TINY, sizes, guided, 2, False) < sampled - cache // 2
    # In int8 a head's 8 numbers and their scale take 12 bytes.
    rounded = replace(guided, cache_dtype="int8")
    assert sampled - bytes_per_row(TINY, sizes, rounded, 4, False) == cache * 20 // 32
    # Given plans are read at once: scores of every token with every other.
    given = bytes_per_row(TINY, sizes, guided, 4, True)
    assert given > sampled + 4 * TINY.decoder.num_heads * 600 * 600


def test_templates(tmp_path: Path) -> None:
    assert read_template("gotr1") == GOTR1_TEMPLATE
    assert read_template("janus") == JANUS_TEMPLATE
    assert read_template("reasongen_rl") == REASONGEN_RL_TEMPLATE
    assert read_template("Paint {caption}:") == "Paint {caption}:"
    file = tmp_path / "template.txt"
    file.write_text("Peins {caption} !\n")
    assert read_template(str(file)) == "Peins {caption} !"
    file.write_text("{caption} {caption}")
    with pytest.raises(InputError, match="exactly once"):
        read_template(str(file))


def test_a_fingerprint_hangs_on_the_weights_alone(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(3_000_000)

    def write(name: str, content: bytes) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(content)
        (folder / f"{name}.txt").write_text(name)
        return folder

    one = fingerprint(write("one", data))
    assert fingerprint(write("two", data)) == one
    assert fingerprint(write("cut", data[:-1])) != one
    assert fingerprint(write("other", bytes(b ^ 1 for b in data))) != one


def test_indices_count_over_plans_of_different_numbers(tmp_path: Path) -> None:
    file = tmp_path / "plans.jsonl"
    file.write_text(
        '{"prompt": "a", "samples": [{"plan_text": "x"}, {"plan_text": "y"}]}\n'
        '{"prompt": "b", "plan": "z"}\n{"prompt": "c", "plan": "z"}\n'
    )
    tasks = list(read_tasks(GenerateConfig(tmp_path, plans=file, n=3)))
    assert [(t.first, t.count) for t in tasks] == [(0, 6), (6, 3), (9, 3)]


def test_a_grid_of_any_number(tmp_path: Path) -> None:
    from PIL import Image

    files = []
    for i in range(5):
        Image.new("RGB", (2, 3), (i * 10, 0, 0)).save(tmp_path / f"{i}.png")
        files.append(tmp_path / f"{i}.png")
    write_grid(files, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (6, 6)
        cells = [grid.getpixel((x * 2, y * 3))[0] for y in range(2) for x in range(3)]
    assert cells == [0, 10, 20, 30, 40, 0]
