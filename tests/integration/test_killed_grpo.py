"""`gotr1 train grpo` told to stop and killed, in real processes, at seeded moments.

However often it is ended, the run that comes out is that of one never touched, to the bit.

Run as a program this file is a nursery: it imports everything once, then forks a process for each
line of JSON that it reads, `[config, moment, variables of the environment]`, lets it run the
command, and answers with `[exit code, counts of events]`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from object_store import served_bucket
from tiny import SHAPES, Brightness, grpo_values, steady_metrics, write_config, write_shapes

from gotr1_jax import cli
from gotr1_jax.convert.open_checkpoint import PARTS, split_part
from gotr1_jax.grpo import setup
from gotr1_jax.io.object_store import ObjectStore
from gotr1_jax.sampler.sampler import Sampler
from gotr1_jax.trainer import checkpoint
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.loop import Loop
from gotr1_jax.trainer.metrics import read_metrics
from gotr1_jax.trainer.samples import read_samples

STEPS = 6
KILLS = 10


@dataclass(frozen=True)
class Moment:
    """When something happens to a process: at an event, counted from its first step on.

    Events: `rollout`, `judge`, `update` (given to the device), `save` (all files of it lie but the
    manifest), each when it begins; `phase` is any of these, `file` any file that Python opens,
    renames, makes or removes in the run directory, `object` any that is written to a bucket or
    removed from it.
    """

    event: str
    count: int
    delay: float = 0.0  # seconds after it
    number: int = signal.SIGKILL


class Life:
    """In a forked process: counts events and does what is to happen."""

    def __init__(self, moment: Moment | None, root: str) -> None:
        self.moment, self.root = moment, root
        self.seen: Counter[str] = Counter()
        self.begun = False
        self.lock = threading.RLock()

    def event(self, *names: str) -> None:
        with self.lock:
            if not self.begun:
                return
            self.seen.update(names)
            moment = self.moment
            if moment is None or moment.event not in names:
                return
            if self.seen[moment.event] != moment.count:
                return

        def end() -> None:
            os.kill(os.getpid(), moment.number)

        if moment.delay:
            timer = threading.Timer(moment.delay, end)
            timer.daemon = True
            timer.start()
        else:
            end()

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        watched = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if self.begun and name in watched and str(arguments[0]).startswith(self.root):
            self.event("file")

    def counted(self, event: str, function: Any) -> Any:
        def counting(*rest: Any) -> Any:
            self.event(event)
            return function(*rest)

        return counting

    def watch(self) -> None:
        """Puts itself into the job; nothing else of it is changed but the judge."""
        steps, sample, make_step = Loop.steps, Sampler.__call__, setup.make_policy_step
        write_manifest = checkpoint.write_manifest
        life = self

        def stepping(loop: Loop, first: int) -> Iterator[int]:
            life.begun = True
            return steps(loop, first)

        def sampling(sampler: Sampler, *rest: Any) -> Any:
            life.event("rollout", "phase")
            return sample(sampler, *rest)

        class Watched(Brightness):
            def judge(self, requests: Any) -> Any:
                life.event("judge", "phase")
                return super().judge(requests)

        def making(*rest: Any) -> Any:
            update = make_step(*rest)

            def updating(*state: Any) -> Any:
                result = update(*state)
                life.event("update", "phase")
                return result

            return updating

        def writing(*rest: Any) -> None:
            life.event("save", "phase")
            write_manifest(*rest)

        Loop.steps = stepping
        Sampler.__call__ = sampling
        setup.make_judge = lambda *_: Watched()
        setup.make_policy_step = making
        checkpoint.write_manifest = writing
        for name in ("put", "remove"):
            setattr(ObjectStore, name, self.counted("object", getattr(ObjectStore, name)))
        sys.addaudithook(self.audit)


def live(config: str, moment: Moment | None, out: int) -> None:
    life = Life(moment, str(Path(config).parent))
    life.watch()
    code = cli.run(["train", "grpo", "--config", config])
    os.write(out, json.dumps(life.seen).encode())
    os._exit(code)


def nursery() -> None:
    """Nothing here touches a device: processes that did cannot be forked."""
    # What a run imports late, and traces without a device.
    import tensorboardX  # noqa: F401

    cli.build_parser()
    for part, dtype in product(PARTS, (jnp.float32, np.dtype("float32"))):
        split_part(part, SHAPES, dtype)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        config, moment, variables = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            os.environ.update(variables)
            live(config, None if moment is None else Moment(**moment), writer)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            seen = pipe.read()
        _, status, used = os.wait4(child, 0)
        print(f"{used.ru_utime + used.ru_stime:.1f} s CPU", file=sys.stderr)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps([code, json.loads(seen or "{}")]), file=answers, flush=True)


class Nursery:
    def __init__(self, folder: Path) -> None:
        root = Path(__file__).resolve().parents[2]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"),
        )  # fmt: skip

    def run(
        self, config: Path, moment: Moment | None = None, **variables: str
    ) -> tuple[int, dict[str, int]]:
        """The command once; its exit code, and the events of its steps."""
        assert self.process.stdin is not None and self.process.stdout is not None
        line = json.dumps([str(config), None if moment is None else asdict(moment), variables])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.log.read_text()
        return tuple(json.loads(answer))

    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nursery, Path, Path]]:
    """The nursery, a checkpoint to begin from, and a run that was left alone."""
    folder = tmp_path_factory.mktemp("world")
    begin = write_shapes(folder / "begin")
    nursery = Nursery(folder)
    with nursery.process:
        whole = new_run(folder / "whole", begin)
        assert nursery.run(whole)[0] == 0, nursery.said()
        yield nursery, begin, whole
        assert nursery.process.stdin is not None
        nursery.process.stdin.close()


def new_run(folder: Path, begin: Path, run_dir: str = "") -> Path:
    """A configuration in a new folder, beside which its run directory will lie."""
    folder.mkdir()
    values = grpo_values(begin, folder / "run")
    values["run_dir"] = run_dir or values["run_dir"]
    values |= {"steps": STEPS, "checkpoint": {"every": 2, "keep": 2}}
    values["evaluation"] |= {"every": 3}
    # The sampler is of step 4 in the last two steps: its weights have to be saved too.
    values["rollout"] |= {"refresh_every": 4}
    return write_config(folder / "grpo.yaml", values)


def arrays(run: Path) -> dict[str, np.ndarray]:
    """All that the last checkpoint holds: parameters, optimizer, entropy state."""
    step = Checkpoints(run / "checkpoints").latest_good()
    assert step == STEPS
    folder = Checkpoints(run / "checkpoints").folder(step)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        state = reader.restore(folder, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    return {path: np.asarray(leaf) for path, leaf in state.state.items()}


def assert_same_runs(one: Path, two: Path) -> None:
    assert steady_metrics(one) == steady_metrics(two)
    assert len(read_metrics(one / "metrics.jsonl")) == STEPS
    first, second = arrays(one), arrays(two)
    assert first.keys() == second.keys() and any("opt_state" in path for path in first)
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path], err_msg=path)
    folders = [{path.name for path in (run / "samples").iterdir()} for run in (one, two)]
    assert folders[0] == folders[1] >= {"step_000006", "eval_step_000003", "eval_after"}
    for name in folders[0]:
        for a, b in zip(*(read_samples(run / "samples" / name) for run in (one, two)), strict=True):
            np.testing.assert_array_equal(a.image, b.image)
            assert (a.caption, a.plan_text, a.scores) == (b.caption, b.plan_text, b.scores)
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    for name in ("eval_before.json", "eval_after.json", "model/model.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_the_sampler_has_the_weights_of_the_last_refresh(world: Any) -> None:
    run = world[2].parent / "run"
    saved = arrays(run)
    stale = {path: leaf for path, leaf in saved.items() if path.startswith("sampler_params/")}
    assert stale.keys() == {f"sampler_{p}" for p in saved if p.startswith("params/")}
    assert any((leaf != saved[path.removeprefix("sampler_")]).any() for path, leaf in stale.items())
    differences = [line["policy/logp_diff/image"] for line in steady_metrics(run)]
    newest, lagging = differences[0] + differences[4], differences[1:4] + differences[5:]
    assert newest < 1e-4 < min(lagging), differences


def test_stopped_in_a_rollout_in_an_update_and_while_it_saves(world: Any) -> None:
    nursery, begin, whole = world
    config = new_run(whole.parent.parent / "told", begin)
    run = config.parent / "run"

    def told(event: str, count: int, number: int) -> int:
        code, _ = nursery.run(config, Moment(event, count, number=number))
        assert code == 75, nursery.said()
        assert not (run / "summary.json").exists()
        return max(Checkpoints(run / "checkpoints").steps())

    assert told("rollout", 1, signal.SIGTERM) == 1
    # Step 2 is saved, and behind that save the run goes on: at least into step 3.
    assert 2 <= told("save", 1, signal.SIGTERM) <= 4
    assert told("update", 1, signal.SIGUSR1) <= 5
    assert nursery.run(config)[0] == 0, nursery.said()
    assert_same_runs(run, whole.parent / "run")


def test_killed_at_random_moments(world: Any) -> None:
    """Where a moment falls differs with the machine's speed; what comes out does not."""
    nursery, begin, whole = world
    rng = random.Random(0)
    moments = []
    for i in range(KILLS):
        if i % 2:
            moments.append(Moment("file", rng.randint(1, 150)))
        else:
            moments.append(Moment("phase", rng.randint(1, 7), rng.uniform(0, 0.1)))
    runs = 0
    while moments:
        runs += 1
        config = new_run(whole.parent.parent / f"killed{runs}", begin)
        code = -signal.SIGKILL
        # A moment that a run has outlived is waited for in the next one.
        while code == -signal.SIGKILL:
            code, _ = nursery.run(config, moments[0] if moments else None)
            if code == -signal.SIGKILL:
                moments.pop(0)
        assert code == 0, nursery.said()
        assert_same_runs(config.parent / "run", whole.parent / "run")


def test_killed_in_a_bucket(world: Any, tmp_path: Path) -> None:
    """Each life is on another machine, which knows nothing but the bucket."""
    nursery, begin, whole = world
    rng = random.Random(0)
    with served_bucket() as bucket:
        config = new_run(tmp_path / "killed", begin, f"{bucket.url}/runs/run")
        for life in range(KILLS + 1):
            # Of some forty objects of an undisturbed life.
            moment = Moment("object", rng.randint(1, 30), rng.uniform(0, 0.02))
            machine = {**bucket.settings, "GOTR1_STORAGE": str(tmp_path / f"machine{life}")}
            code, seen = nursery.run(config, moment if life < KILLS else None, **machine)
            print(life, code, seen, moment)
            assert code == (-signal.SIGKILL if life < KILLS else 0), nursery.said()
        assert not list((tmp_path / f"machine{KILLS}" / "work").iterdir())
        assert_same_runs(bucket.download("runs/run", tmp_path / "run"), whole.parent / "run")


if __name__ == "__main__":
    nursery()
