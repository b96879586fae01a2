"""A training job that is told to stop, and killed, in real processes: resumed = uninterrupted.

Run as a program, this file is the job, with something that happens to it:
`FILE CONFIG WHAT [OTHER_CONFIG]`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from gotr1_jax import cli
from gotr1_jax.config import load_config
from gotr1_jax.models.vq import VQModel
from gotr1_jax.report.page import write_report
from gotr1_jax.trainer import checkpoint
from gotr1_jax.trainer.optimizer import make_optimizer
from gotr1_jax.vq import train as train_vq
from gotr1_jax.vq import update as update_vq
from gotr1_jax.vq.config import VqTrainConfig

STEPS = 8


def light_state(config: VqTrainConfig, embedding: None = None) -> update_vq.VqState:
    """The job's arrays, all ones: drawing them takes most of a minute to compile."""
    shapes = nnx.split(nnx.eval_shape(lambda: VQModel(config.model, rngs=nnx.Rngs(0))))[1]
    params = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    opt_state = make_optimizer(config.optimizer, config.steps).init(params)
    zero = jnp.zeros((), jnp.int32)
    return update_vq.VqState(params, opt_state, jnp.ones(16), zero, zero)


def light_step(_: VqTrainConfig) -> update_vq.StepFn:
    """In the place of an update, which takes a minute to compile: moves all that is saved."""

    @partial(jax.jit, donate_argnums=0)
    def update(
        state: update_vq.VqState, images: jax.Array, codes_BU: None = None
    ) -> tuple[update_vq.VqState, update_vq.VqMetrics]:
        seen = images.astype(jnp.float32).mean() / 255
        kept = (state.params, state.opt_state, state.usage_I)
        moved = jax.tree.map(lambda x: (0.9 * x + seen).astype(x.dtype), kept)
        norms = [optax.tree.norm(tree) for tree in moved]
        values = dict.fromkeys(
            ("l1", "l2", "commitment", "consistency", "nats", "accuracy", "used_frac"), seen
        )
        metrics = update_vq.VqMetrics(
            loss=norms[0], grad_norm=norms[1], psnr=norms[2], perplexity=seen, **values
        )
        return update_vq.VqState(*moved, state.step + 1, state.skipped_in_a_row), metrics

    return update


def light_evaluation(_: Any, params: Any, data: Any, margin: int) -> Any:
    return {"psnr": float(optax.tree.norm(params))}, data.images[:, 0]


def train(config: str) -> int:
    return cli.run(["train", "vq", "--config", config])


def in_step(step: int, happen: Callable[[], None]) -> None:
    """`happen` when the update of `step` was given to the device, before it is known to be done."""
    make_step = train_vq.make_step

    def making(config: VqTrainConfig) -> update_vq.StepFn:
        update = make_step(config)

        def updating(state: Any, *batch: Any) -> Any:
            now = int(state.step) + 1
            result = update(state, *batch)
            if now == step:
                happen()
            return result

        return updating

    train_vq.make_step = making


def in_save(step: int, happen: Callable[[], object]) -> None:
    """`happen` in the background, when all files of the save of `step` but its manifest lie."""
    write_manifest = checkpoint.write_manifest

    def writing(folder: Path, saved: int, *rest: Any) -> None:
        if saved == step:
            happen()
        write_manifest(folder, saved, *rest)

    checkpoint.write_manifest = writing


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def no_space() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def wait_for_save() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def job(config: str, what: str, other: str | None = None) -> int:
    train_vq.init_state = light_state
    train_vq.make_step, train_vq.evaluate = light_step, light_evaluation
    if what == "whole, and one told to stop in step 3 while step 2 is saved":
        assert other is not None and train(other) == 0
        told = threading.Event()

        def tell() -> None:
            send(signal.SIGTERM)
            told.set()

        in_save(2, told.wait)
        in_step(3, tell)
    elif what == "with a disk that is full in the save of step 4":
        in_save(4, no_space)
        in_step(5, wait_for_save)
    elif what == "killed in step 5":
        in_step(5, lambda: send(signal.SIGKILL))
    elif what == "killed in the save of step 6":
        in_save(6, lambda: send(signal.SIGKILL))
    else:
        assert what == "left alone"
    return train(config)


if __name__ == "__main__":
    sys.exit(job(*sys.argv[1:]))

from tiny import assert_equal_trees, steady_metrics, write_config  # noqa: E402

from gotr1_jax.trainer.metrics import read_metrics  # noqa: E402


def vq_values(run_dir: Path) -> dict[str, Any]:
    """Plain values of an image tokenizer's job: 8 steps on 2 whole images each."""
    return {
        "run_dir": str(run_dir),
        "model": {
            "codebook_size": 16, "code_dim": 4, "base_channels": 4, "z_channels": 8,
            "encoder_multipliers": [1, 1], "decoder_multipliers": [1, 1],
            "num_res_blocks": 1, "norm_groups": 2,
        },
        "steps": STEPS,
        "batch_size": 2,
        "pictures": 8,
        "eval_images": 8,
        "quantize_from": 2,
        "log_every": 1,
        "crop": {"size": 16, "steps": 0, "batch_size": 2},
        "optimizer": {"learning_rate": 5e-3},
        "checkpoint": {"every": 2, "keep": 2},
        "mesh": {"data": 1},
    }  # fmt: skip


@pytest.fixture
def programs(tmp_path: Path) -> dict[str, str]:
    """An environment in which the processes share what they compile."""
    root = Path(__file__).resolve().parents[2]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def test_stopped_and_killed_and_resumed_is_as_never_interrupted(tmp_path, programs):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    configs = {
        run: str(write_config(tmp_path / f"{run.name}.yaml", vq_values(run)))
        for run in (whole, broken)
    }

    def child(what: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, __file__, configs[broken], what, *more]
        return subprocess.run(command, env=programs, capture_output=True, text=True)

    def saved() -> list[int]:
        return checkpoint.Checkpoints(broken / "checkpoints").steps()

    done = child("whole, and one told to stop in step 3 while step 2 is saved", configs[whole])
    assert done.returncode == 75, done.stderr
    assert "gotr1: stopped at step 3, which is saved; the same command" in done.stderr
    assert saved() == [2, 3] and not (broken / "model").exists()
    assert "not finished" in write_report(broken).read_text()
    assert [line["step"] for line in read_metrics(broken / "metrics.jsonl")] == [1, 2, 3]

    done = child("with a disk that is full in the save of step 4")
    assert done.returncode == 1, done.stderr
    # Said at the end of the step after it, whose metrics are there; what was saved before stays.
    step_4 = broken / "checkpoints" / "step_000004"
    assert f"gotr1: error: disk full: {step_4} was not written; free some" in done.stderr
    assert [line["step"] for line in read_metrics(broken / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert saved() == [2, 3] and not step_4.exists()

    done = child("killed in step 5")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert set(saved()) >= {3} and max(saved()) <= 4

    done = child("killed in the save of step 6")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert max(saved()) == 4 and (broken / "checkpoints" / "step_000006").is_dir()

    done = child("left alone")
    assert done.returncode == 0, done.stderr
    assert "step_000006 was never finished" in done.stderr
    assert saved() == [6, 8]

    assert len(steady_metrics(whole)) == STEPS
    assert steady_metrics(broken) == steady_metrics(whole)
    target = jax.eval_shape(partial(light_state, _config(configs[whole])))
    one, two = (
        checkpoint.Checkpoints(run / "checkpoints").restore(target) for run in (whole, broken)
    )
    assert one.step == two.step == STEPS
    assert_equal_trees(one.tree, two.tree)
    summaries = [json.loads((r / "summary.json").read_text()) for r in (whole, broken)]
    assert {**summaries[0], "seconds": 0} == {**summaries[1], "seconds": 0}
    assert summaries[0]["steps"] == STEPS
    assert "not finished" not in write_report(broken).read_text()
    for run in (whole, broken):
        shares = [line["time/goodput"] for line in read_metrics(run / "metrics.jsonl")]
        assert shares[0] == 0 < min(shares[1:]) and max(shares) < 1
    # The time that was lost counts: the second run began with the first one's start.
    starts = [one.meta["goodput"]["started"], two.meta["goodput"]["started"]]
    assert starts[0] < starts[1] < (broken / "config.yaml").stat().st_mtime


def _config(path: str) -> VqTrainConfig:
    return load_config(VqTrainConfig, Path(path), [])
