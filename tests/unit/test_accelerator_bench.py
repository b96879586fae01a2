"""`gotr1 bench accelerator`: what it counts, what it keeps, and how it goes on."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax import bench
from gotr1_jax.aot.chips import CHIPS, Chip, chip_name
from gotr1_jax.bench import accelerator
from gotr1_jax.bench.accelerator import worker
from gotr1_jax.bench.accelerator.clocks import CompileClock, MemoryWatch, measure
from gotr1_jax.bench.accelerator.costs import image_cost, plan_cost, slot_bytes, tree_bytes
from gotr1_jax.bench.accelerator.record import RESULTS, TABLE, BenchRecord
from gotr1_jax.bench.accelerator.sections import Bench, Section, make_bench
from gotr1_jax.bench.accelerator.sizes import released_policy, tiny_judge, tiny_policy
from gotr1_jax.bench.accelerator.table import sum_of_parts, to_markdown
from gotr1_jax.bench.accelerator.weights import random_weights, uniform
from gotr1_jax.cli import build_parser
from gotr1_jax.decoding.kv_cache import empty_cache
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import JANUS_PRO_7B

MACHINE = {
    "device": "NVIDIA H200", "driver": "1.2", "jax": "0.10", "jaxlib": "0.10",
    "memory_bytes": 140e9, "peak_flops": 1e15, "peak_bandwidth": 4e12, "chip": "h200",
    "sizes": "released", "xla_flags": "",
}  # fmt: skip


def test_bytes_of_loops_are_those_of_every_step_added_up() -> None:
    weights, slot, captions, rows, prompt = 1000, 8, 2, 6, 5
    steps = 7
    each = [weights + slot * (captions * prompt + rows * (t + 1)) for t in range(steps)]
    assert plan_cost(weights, slot, captions, rows, prompt, steps).bytes == sum(each)

    plans = np.array([3, 4, 5, 6, 7, 7])
    for guided, branches, shared in ((True, 2, prompt + 7), (False, 1, 0)):
        context = captions * prompt + plans.sum() + shared
        each = [weights + slot * (context + branches * rows * (u + 1)) for u in range(9)]
        found = image_cost(weights, slot, captions, rows, prompt, plans, 9, guided)
        assert (found.steps, found.bytes) == (9, sum(each))


def test_bytes_of_a_slot_are_those_of_the_cache() -> None:
    decoder = JANUS_PRO_7B.decoder
    cache = jax.eval_shape(lambda: empty_cache(decoder, 3, 5, jnp.bfloat16))
    assert tree_bytes(cache) == 3 * 5 * slot_bytes(decoder, 2)


def test_names_of_devices() -> None:
    assert chip_name("NVIDIA H200") == "h200" and chip_name("TPU v5 lite") == "v5e"
    # Same family, other numbers.
    for kind in ("NVIDIA H200 NVL", "NVIDIA GH200 480GB", "NVIDIA H100 PCIe", "cpu"):
        assert chip_name(kind) is None
    assert {chip_name(f"TPU {kind}") for kind in ("v4", "v5p", "v6e")} == {"v4", "v5p", "v6e"}


def test_random_weights_are_spread_and_full_of_rank() -> None:
    x = np.asarray(uniform((3, 128, 96), 7))
    assert abs(x.mean()) < 0.02 and abs(x.std() - 3**-0.5) < 0.01 and abs(x).max() <= 1
    assert np.linalg.matrix_rank(x[0]) == 96 and not np.allclose(x[0], x[1])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)
        for name, shape in (("a.scale", (4,)), ("a.bias", (4,)), ("a.kernel", (2, 100, 64)))
    }
    made = random_weights(shapes)
    assert (made["a.scale"] == 1).all() and (made["a.bias"] == 0).all()
    assert np.std(np.asarray(made["a.kernel"], np.float32)) == pytest.approx(0.1, rel=0.05)
    half = random_weights(shapes, {"kernel": 0.5})["a.kernel"]
    assert np.std(np.asarray(half, np.float32)) == pytest.approx(0.5, rel=0.05)


def test_sections_of_the_released_sizes() -> None:
    """On an H200 all of them fit, the 7B first; on an H100 the largest rollout does not."""
    sections = {s.name: s for s in make_bench("released", CHIPS["h200"]).sections}
    assert list(sections)[:6] == [
        "7B rollout 32", "7B update", "7B log-probs", "7B difference", "judge", "VQ decode",
    ]  # fmt: skip
    for size in ("1B", "7B"):
        assert {f"{size} rollout {rows}" for rows in (1, 16, 64, 128)} <= sections.keys()
    assert all(s.bytes <= CHIPS["h200"].hbm_bytes for s in sections.values())
    # 128 rows of two branches of 576 tokens, their plans, and the weights twice.
    slot = slot_bytes(JANUS_PRO_7B.decoder, 2)
    caches = 128 * (2 * 576 + 256) * slot
    assert caches + 28e9 < sections["7B rollout 128"].bytes < caches + 31e9
    assert sections["7B rollout 128"].bytes > CHIPS["h100"].hbm_bytes


def test_the_layout_is_that_of_the_memory() -> None:
    large, small = (released_policy("7b", CHIPS[c].hbm_bytes) for c in ("h200", "h100"))
    assert (large.config.update.micro_batch, large.step_rows) == (4, 32)
    assert (small.config.update.micro_batch, small.step_rows) == (2, 16)
    assert large.config.policy.remat == "full" and large.config.policy.dtype == "bfloat16"
    assert "--update.micro_batch" in large.compile_options and large.plan_tokens == 256


def test_compilations_are_apart_from_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_jax.bench.accelerator.clocks._LARGE", 0.0)
    clock = CompileClock()

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        for _ in range(60):
            x = jnp.sin(x) @ x
        return x

    x, start = jax.block_until_ready(jnp.ones((8, 8))), clock.seconds
    timing = measure(lambda: program(x), clock, repeats=2)
    assert timing.programs + timing.from_cache >= 1  # compiled, or read from the cache
    assert timing.compile == pytest.approx(clock.seconds - start)
    assert timing.compile > 0 and timing.first >= 0
    assert len(timing.repeats) == 2 and timing.seconds == min(timing.repeats)


class FakeDevice:
    """A device whose memory is a list of what it says in turn."""

    device_kind, platform = "NVIDIA H200", "gpu"

    def __init__(self, in_use: int, peak: int) -> None:
        self.in_use, self.peak = in_use, peak

    def memory_stats(self) -> dict[str, int]:
        return {
            "bytes_in_use": self.in_use, "peak_bytes_in_use": self.peak,
            "bytes_limit": 140_000_000_000,
        }  # fmt: skip


def test_the_peak_is_the_allocators_where_that_rose() -> None:
    device = FakeDevice(5, 90)
    with MemoryWatch(device) as watch:
        device.in_use = 40
        time.sleep(0.05)
        device.in_use = 10
    assert (watch.start_bytes, watch.peak_bytes, watch.is_exact) == (5, 40, False)
    with MemoryWatch(device) as watch:
        device.peak = 120
    assert (watch.peak_bytes, watch.is_exact) == (120, True)


def fake_section(name: str, run: Callable[[Any, int], dict[str, Any]], **changes: Any) -> Section:
    section = Section(name, f"policy {name}", 10, 1, 0.1, 0.1, run)
    return replace(section, **changes)


class Bomb(Exception):
    pass


def bench_of(*sections: Section) -> Bench:
    class Shared(Bench):
        def make_group(self, group: str, *_: Any) -> str:
            return group

    return Shared({}, tiny_judge(), sections)


def worker_of(folder: Path, bench: Bench, seconds: float = 100.0) -> worker.Worker:
    record = BenchRecord.read(folder)
    record.check_machine(MACHINE)
    return worker.Worker(record, FakeDevice(1, 1), bench, time.time() + seconds, 1)


def fail(error: Exception) -> Callable[[Any, int], dict[str, Any]]:
    def run(*_: Any) -> dict[str, Any]:
        raise error

    return run


def test_no_section_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory, too large, too slow, broken: each is said, and the rest is measured."""
    monkeypatch.setattr("gotr1_jax.models.attention._CHOICE.used", {"cudnn": None})  # before
    calls: list[str] = []

    def good(shared: str, repeats: int) -> dict[str, Any]:
        calls.append(shared)
        return {"number": repeats}

    full = fail(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes\nmore"))
    sections = bench_of(
        fake_section("full", full),
        fake_section("large", good, bytes=10**12),
        fake_section("slow", good, seconds=1e4),
        fake_section("broken", fail(Bomb("no"))),
        fake_section("good", good),
    )
    worker_of(tmp_path, sections).run()
    found = BenchRecord.read(tmp_path).sections
    assert {name: s["status"] for name, s in found.items()} == {
        "full": "out of memory", "large": "too large", "slow": "skipped", "broken": "failed",
        "good": "measured",
    }  # fmt: skip
    assert found["full"]["why"].endswith("allocating 9 bytes")
    assert found["large"]["why"] == "weights and caches alone are 1000.0 GB of 140.0"
    assert (found["good"]["number"], found["good"]["attention"]) == (1, "none yet")
    text = (tmp_path / TABLE).read_text()
    assert "| slow | skipped | it takes about 20005 s" in text and "Bomb: no" in text

    # A later call measures nothing twice; what was skipped or broken is tried again, once.
    for status in ("failed", "failed"):
        worker_of(tmp_path, sections).run()
        found = BenchRecord.read(tmp_path).sections
        assert found["broken"]["status"] == status and found["broken"]["tries"] == 2
    assert calls == ["policy good"]
    worker_of(tmp_path, bench_of(fake_section("slow", good))).run()
    assert BenchRecord.read(tmp_path).sections["slow"]["status"] == "measured"


def test_estimates_learn_from_what_was_compiled(tmp_path: Path) -> None:
    """A first guess of a second a program; it is ten: the next one does not fit any more."""
    shared = {"group": "policy x", "programs": 5, "compile_seconds": 1.0}
    slow = {"compile_seconds": 50.0, "programs": 5}
    sections = bench_of(
        fake_section("first", lambda *_: dict(slow), **shared),
        fake_section("second", lambda *_: {}, **shared),
    )
    worker_of(tmp_path, sections, 40.0).run()
    found = BenchRecord.read(tmp_path).sections
    assert found["first"]["status"] == "measured"
    assert found["second"]["why"].startswith("it takes about 55 s, ")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "results.json"),
        ("[]", "results.json"),
        ('{"version": 1, "machine": {}, "sections": {"a": 3}}', "is no result of gotr1 bench"),
        ('{"version": 2, "machine": {}, "sections": {}}', "use another --out"),
    ],
)
def test_a_folder_with_another_file_of_that_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / RESULTS).write_text(text)
    with pytest.raises(InputError, match=message):
        BenchRecord.read(tmp_path)


def test_results_of_another_machine_are_not_mixed(tmp_path: Path) -> None:
    record = BenchRecord(tmp_path)
    record.check_machine(MACHINE)
    record.write()
    again = BenchRecord.read(tmp_path)
    again.check_machine({**MACHINE, "memory_bytes": 1})
    with pytest.raises(InputError, match="measured with driver '1.2', here it is '1.3'"):
        again.check_machine({**MACHINE, "driver": "1.3"})


_LOST = """
import os, sys
from pathlib import Path
from gotr1_jax.bench.accelerator.record import BenchRecord
record = BenchRecord.read(Path(sys.argv[1]))
record.machine = {machine}
if "a" in record.sections:
    record.put("b", {{"status": "measured"}})
    sys.exit(0)
record.start("a", 1.0)
os.abort()
"""


def test_a_section_whose_process_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with the reason, and another process goes on with the rest."""
    script = _LOST.format(machine=MACHINE)
    command = [sys.executable, "-c", script, str(tmp_path)]
    monkeypatch.setattr(accelerator, "_command", lambda *_: command)
    accelerator._supervise(Namespace(out=tmp_path, minutes=5.0))
    found = BenchRecord.read(tmp_path).sections
    assert found["a"]["status"] == "ended" and found["b"]["status"] == "measured"
    assert found["a"]["why"] == "its process ended with code -6"


def test_the_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs when it is over is ended, and named."""
    out, running = tmp_path / "out", BenchRecord(tmp_path / "running", dict(MACHINE))
    running.start("a", 1.0)
    BenchRecord(out, dict(MACHINE)).write()
    script = f"cp {running.folder / RESULTS} {out / RESULTS}; exec sleep 600"
    monkeypatch.setattr(accelerator, "_command", lambda *_: ["sh", "-c", script])
    start = time.time()
    accelerator._supervise(Namespace(out=out, minutes=0.1))
    assert time.time() - start < 60
    assert BenchRecord.read(out).sections["a"]["why"] == "the time was over"


def measured(**values: Any) -> dict[str, Any]:
    timing = {"compile_seconds": 1.0, "programs_from_cache": 0, "peak_is_exact": True}
    return {"status": "measured", "peak_bytes": 30e9, **timing, **values}


def test_the_table(tmp_path: Path) -> None:
    """A sum of parts and a predicted peak, by hand."""
    record = BenchRecord(tmp_path, dict(MACHINE))
    loop = {"tokens_per_second": 9.0, "bandwidth_share": 0.5, "images_per_second": 4.0}
    for rows in (32, 64):
        record.sections[f"7B rollout {rows}"] = measured(
            rows=rows, samples_per_second=8.0, plan=loop, image=loop, not_arguments_bytes=10e9
        )
    record.sections["7B update"] = measured(
        rows=16, micro_batch=4, remat="full", attention="cudnn", rows_per_second=16.0, mfu=0.4,
        executed_share=0.6, rows_at_once=32, step_rows=128,
    )  # fmt: skip
    assert sum_of_parts(record, "7B") is None  # no judge yet
    record.sections["judge"] = measured(samples_per_second=32.0, questions_per_second=224.0)
    record.sections["VQ decode"] = measured(images_per_second=64.0)
    record.sections["7B predicted"] = {
        "status": "measured", "command": "gotr1 compile", "job_peak_bytes": 80e9,
        "step_seconds_at_least": 9.0,
        "peak_bytes_of": {"update": 29e9, "image loop, last bucket": 21e9},
    }  # fmt: skip
    parts = sum_of_parts(record, "7B")
    assert parts is not None
    assert parts["seconds"] == {"rollout": 16.0, "decode": 2.0, "judge": 4.0, "update": 8.0}
    lines = to_markdown(record).splitlines()
    assert "| 7B, sum of parts | 16.00 | 2.00 | 4.00 | 8.00 | 30.00 | 4.27 | 13 % |" in lines
    # Only the rows that a step draws at once were predicted.
    assert "| 7B rollout 32 | 9 | 50 % | 4 | 50 % | 8 | 1 | 20.0 | 21.0 |" in lines
    assert "| 7B rollout 64 | 9 | 50 % | 4 | 50 % | 8 | 1 | 20.0 | - |" in lines
    assert "| 7B update | 4 | full | cudnn | 16 | 40 % | 60 % | 1 | 30.0 | 29.0 |" in lines


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--minutes", "0"], "--minutes is 0.0"),
        (["--chip", "h200"], "--chip goes with --dry"),
        (["--dry"], "there is no accelerator here; --sizes tiny"),
        (["--until", "9e9"], "there is no accelerator here"),
        (["--dry", "--chip", "h200", "--only", "9B"], "--only 9B: no section has it in its name"),
    ],
)
def test_bad_options(arguments: list[str], message: str, tmp_path: Path) -> None:
    words = ["bench", "accelerator", "--out", str(tmp_path / "out"), *arguments]
    with pytest.raises(InputError, match=message):
        bench.run(build_parser("bench").parse_args(words))
    assert not (tmp_path / "out").exists()


def test_a_tiny_step_and_its_parts(tmp_path: Path) -> None:
    """All that is measured on an accelerator, with programs that are compiled once."""
    tiny, device = make_bench("tiny", Chip("cpu", 2**40)), jax.devices()[0]
    record = BenchRecord(tmp_path)
    record.check_machine(worker.describe_machine(device, "tiny"))
    by_name = {section.name: section for section in tiny.sections}
    wanted = ("tiny rollout 4", "tiny update", "tiny difference")

    def of_step(section: Section) -> Section:
        def run(step: Any, repeats: int) -> dict[str, Any]:
            return section.run(step.policy_run, repeats)

        return replace(section, group="step tiny", run=run)

    sections = (by_name["tiny step"], *(of_step(by_name[name]) for name in wanted))
    kept = replace(tiny, sections=sections)
    worker.Worker(record, device, kept, time.time() + 10**5, 1).run()
    found = BenchRecord.read(tmp_path).sections
    assert [s["status"] for s in found.values()] == ["measured"] * 4, json.dumps(found)
    step, rollout, update, difference = found.values()
    measured_policy = tiny_policy()
    sizes = measured_policy.sizes
    assert rollout["image"]["steps"] == sizes.num_image_tokens
    seconds = rollout["plan"]["seconds"] + rollout["image"]["seconds"]
    assert rollout["samples_per_second"] == pytest.approx(4 / seconds)
    assert step["compile_seconds"] > 0
    assert update["programs"] == 0  # the step's own

    # Two passes of 8 rows: products of the layers, attention in full, and both heads.
    d, T = sizes.decoder, measured_policy.plan_tokens + 1
    tokens = measured_policy.prompt_tokens + T + sizes.num_image_tokens - 1
    rank = measured_policy.config.policy.lora
    assert rank is not None
    outs = {"q": 32, "k": 32, "v": 32, "o": 32, "gate": 64, "up": 64, "down": 32}
    pairs = [(64 if name == "down" else 32, out) for name, out in outs.items()]
    layer = sum(a * b + rank.rank * (a + b) for a, b in pairs) + 2 * tokens * d.hidden_size
    heads = T * 32 * 512 + sizes.num_image_tokens * 32 * (32 + 64)
    aligner = (sizes.num_image_tokens - 1) * 32 * (4 + 32)
    forward = 2 * 8 * (tokens * d.num_layers * layer + heads + aligner)
    assert update["model_flops"] / 2 == pytest.approx(forward, rel=0.02)
    assert update["executed_flops"] > update["model_flops"] * 1.4  # all layers are recomputed
    assert update["mfu"] is None and update["rows"] == 8

    for modality in ("text", "image"):
        assert 0 < difference[modality]["mean"] < 0.1 < difference[modality]["entropy"]
    assert step["rows"] == 8 and set(step["parts"]) == {"rollout", "decode", "judge", "update"}
    assert step["judge_share"] == step["parts"]["judge"] / sum(step["parts"].values())
