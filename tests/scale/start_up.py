"""How long a command takes to start, without and with compiled programs in the user's cache.

    python tests/scale/start_up.py [generate] [play] [--turns 1]

`generate` is `gotr1 generate --ckpt embedded` of one caption; `play` is what `gotr1 play` does when
its page asks for the first plan and its image. A turn is one process with an empty cache folder and
one that finds the first one's programs. Seconds are from the start of Python. Prints each turn's
and the medians of the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CAPTION = "a red circle above a blue square"


def run_once(command: str, folder: Path) -> dict[str, float]:
    """Do what `command` does, in this process, and measure it."""
    import jax

    start = float(os.environ["START"])
    found: dict[str, float] = {"programs": 0, "read": 0, "compiling": 0.0}

    def on_seconds(event: str, seconds: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found["programs"] += 1
            found["compiling"] += seconds

    def on_event(event: str, **_: str | int) -> None:
        found["read"] += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(on_seconds)
    jax.monitoring.register_event_listener(on_event)
    from gotr1_jax.sampler.sampler import Sampler

    run_plans = Sampler._run_plans

    def timed(self: Sampler, *args: Any) -> Any:
        result = jax.block_until_ready(run_plans(self, *args))
        found.setdefault("plan", time.time() - start)
        return result

    Sampler._run_plans = timed  # type: ignore[method-assign]
    if command == "generate":
        from gotr1_jax.cli import run

        words = ["--ckpt", "embedded", "--prompt", CAPTION, "--out", str(folder)]
        assert run(["generate", *words]) == 0
    else:
        from gotr1_jax.generate.pipeline import Pipeline
        from gotr1_jax.parallel.startup import start_devices
        from gotr1_jax.play.studio import Studio

        start_devices()
        actions = Studio({"embedded": Pipeline.from_pretrained("embedded")}, None).actions
        values = {"checkpoint": "embedded", "prompt": CAPTION, "seed": 0}
        plan = actions["plan"](values)["plan"]
        actions["paint"]({**values, "plan": plan, "n": 1})
    return found | {"image": time.time() - start}


def run_apart(command: str, cache: str) -> dict[str, float]:
    """`run_once` in a process of its own."""
    jax_names = [name for name in os.environ if name.startswith("JAX_") and "CACHE" in name]
    env = {name: value for name, value in os.environ.items() if name not in jax_names}
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, __file__, "--child", str(Path(out) / "out"), command],
            env={**env, "XDG_CACHE_HOME": cache, "START": str(time.time())},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print a line for each process, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commands", nargs="*", default=["generate", "play"])
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("\n" + json.dumps(run_once(options.commands[0], options.child)))
        return
    for command in options.commands:
        ratios: dict[str, list[float]] = {"plan": [], "image": []}
        for _ in range(options.turns):
            with tempfile.TemporaryDirectory() as cache:
                cold, warm = run_apart(command, cache), run_apart(command, cache)
            for name, one in (("empty", cold), ("filled", warm)):
                shown = "  ".join(f"{key} {value:.4g}" for key, value in one.items())
                print(f"{command}  {name} cache: {shown}", flush=True)
            for key, values in ratios.items():
                values.append(warm[key] / cold[key])
        medians = "  ".join(f"{key} {statistics.median(v):.2f}" for key, v in ratios.items())
        print(f"{command}  filled / empty: {medians}", flush=True)


if __name__ == "__main__":
    main()
