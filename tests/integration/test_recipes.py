"""The shell blocks of the README and of the recipes, run in order as they are written.

The papers' tables alone are not run. Downloads are stand-ins in the formats of the real files
(`recipe_programs.py`), and sizes are reduced from outside (`small_gotr1.py` says how, and which
trainings are not run again): the pages know nothing of it. Replaced in their text are only the
repository's address, ports and `/mnt/gotr1`. One checkout serves all pages, as it would a person
who reads on; a page whose commands need the results of another one comes after it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from judge_server import Server, say
from recipe_programs import write_hub, write_own_files, write_programs

from gotr1_jax.config import load_config
from gotr1_jax.grpo.config import GrpoConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "docs" / "recipes"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Tables of full benchmarks of released weights; their shell is checked.
NOT_RUN = {"papers.md"}
# What each page leaves behind, below the checkout.
RESULTS = {
    "index.md": [".venv/bin/gotr1"],
    "own_captions.md": ["checkpoints/hps_v2.1/model.safetensors", "out/before/generation.json",
                        "runs/mine/report.html", "export/mine/config.json"],
    "tpu_pod.md": ["mnt/mine/summary.json"],
    "slurm.md": ["runs/one_node/summary.json"],
    "sft.md": ["tokens/mine/manifest.json", "runs/sft/summary.json", "out/sft/result.json"],
    "own_reward.md": ["runs/colourful/report.html", "colourful.png"],
    "judge_server.md": ["out/scores.jsonl", "runs/vllm/summary.json", "runs/red/summary.json"],
    "reasongen.md": ["runs/reasongen_r1_grpo/summary.json", "out/reasongen/generation.json"],
    "evaluation.md": ["out/geneval/scores.md", "out/t2i/scores.md", "out/dpg/scores.md",
                      "out/shapes/scores.json"],
    "README.md": ["runs/shapes_grpo/report.html", "runs/reward/report.html", "out/bench/scores.md"],
}  # fmt: skip
NEEDS = {"slurm.md": ["own_captions.md"], "evaluation.md": ["own_captions.md"],
         "README.md": ["own_captions.md", "own_reward.md", "sft.md", "evaluation.md"]}  # fmt: skip


# Programs that stand for a platform, and what some call of them has to hold.
CALLS = {
    "tpu_pod.md": {"gcloud": "scp", "docker": "build", "kubectl": "apply"},
    "slurm.md": {"sbatch": "--nodes", "srun": "--kill-on-bad-exit=0"},
    "judge_server.md": {"vllm": "serve"},
}


def answer(handler: BaseHTTPRequestHandler, number: int, body: Any) -> None:
    """Of the server that stands for vLLM: an answer that every question can read."""
    text = json.dumps(body["messages"])
    boxes = '[{"bbox_2d": [2, 8, 10, 20]}]'
    say(handler, boxes if "Find every instance" in text else '{"score": 1}')


@dataclass
class Reader:
    """Someone in a checkout who runs the pages' commands."""

    root: Path
    server: Server
    done: set[str] = field(default_factory=set)

    @property
    def checkout(self) -> Path:
        return self.root / "gotr1_jax"

    def script(self, page: str) -> str:
        """The blocks of a page, one after the other."""
        path = ROOT / page if page == "README.md" else RECIPES / page
        text = "\n".join(BLOCK.findall(path.read_text("utf-8")))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        for old, new in {
            "<this repository>": "somewhere",
            "/mnt/gotr1": str(self.checkout / "mnt"),
            "http://127.0.0.1:8000/v1": self.server.url,
            "9000": port,
        }.items():
            text = text.replace(old, new)
        return text

    def run(self, page: str) -> None:
        """Runs a page, and before it those that it needs; each once."""
        if page in self.done:
            return
        for other in NEEDS.get(page, []):
            self.run(other)
        self.done.add(page)
        # The pages of the whole way, from the clone on, begin beside the checkout.
        folder = self.root if page in ("README.md", "index.md") else self.checkout
        output = self.root / f"{page}.log"
        with output.open("w") as file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.script(page)], cwd=folder,
                env=self.environment(), stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            code = process.wait(timeout=900)
        # What the page left running, such as its reward server.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert code == 0, f"{page}: {output.read_text()[-3000:]}"

    def environment(self) -> dict[str, str]:
        root = self.root
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
        return {
            "JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PATH": f"{root / 'programs'}:/usr/bin:/bin", "HOME": str(root / "home"),
            "PROGRAMS": str(root / "programs"), "HUB": str(root / "hub"), "LOG": str(root / "log"),
            "RECIPE_LOG": str(root / "commands.jsonl"), "RECIPE_STORE": str(root / "store"),
            "RECIPE_JUDGE": self.server.url, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "POLL_SECONDS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1",
            "HF_HUB_CACHE": str(root / "hub" / "cache"),
        }  # fmt: skip

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of every call of a stand-in."""
        path = self.root / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split("|")[1:] for line in lines if line.split("|")[0] == program]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    root = tmp_path_factory.mktemp("recipes")
    for name in ("home", "store", "sizes", "gotr1_jax/mnt"):
        (root / name).mkdir(parents=True)
    write_programs(root / "programs")
    write_hub(root / "hub", root / "sizes")
    checkout = root / "gotr1_jax"
    for name in ("launch", "configs"):
        shutil.copytree(ROOT / name, checkout / name)
    shutil.copy(ROOT / "setup.py", checkout)
    write_own_files(checkout)
    code = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/reward_server.md").read_text(), re.M | re.S
    )
    (checkout / "reward_server.py").write_text(code[0], encoding="utf-8")
    with Server(answer) as server:
        person = Reader(root, server)
        person.run("index.md")
        yield person


def pages() -> list[str]:
    return [*sorted(path.name for path in RECIPES.glob("*.md")), "README.md"]


@pytest.mark.parametrize("page", [page for page in pages() if page not in NOT_RUN])
def test_a_page_runs_as_it_is_written(reader: Reader, page: str) -> None:
    reader.run(page)
    assert page in RESULTS, f"name what {page} leaves behind"
    missing = [name for name in RESULTS[page] if not (reader.checkout / name).exists()]
    assert not missing, (reader.root / f"{page}.log").read_text()[-3000:]
    for program, word in CALLS.get(page, {}).items():
        assert any(word in call for call in reader.calls(program)), program


@pytest.mark.parametrize("page", pages())
def test_the_blocks_of_a_page_are_sound_shell(page: str) -> None:
    path = ROOT / page if page == "README.md" else RECIPES / page
    script = "\n".join(BLOCK.findall(path.read_text("utf-8")))
    script = script.replace("<this repository>", "somewhere")
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert program, "shellcheck is missing; it comes with the extra 'test'"
    # SC1091: the environment's activate is not there.
    command = [program, "--shell", "bash", "--exclude", "SC1091", "-"]
    text = "set -euo pipefail\n" + script
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_memory_and_time_are_those_of_the_table() -> None:
    config = load_config(GrpoConfig, ROOT / "configs" / "gotr1_7b_grpo_from_released.yaml")
    assert (config.mesh.data, config.mesh.fsdp, config.mesh.tensor) == (1, -1, 2)
    rows = config.rollout.captions_per_step * config.rollout.samples_per_caption
    assert rows == 128 >= config.evaluation.captions * config.evaluation.samples
    assert (config.policy.remat, config.rollout.captions_at_once) == ("full", 0)
    fits = (ROOT / "docs" / "fits.md").read_text("utf-8")
    row = next(line for line in fits.splitlines() if line.startswith("| h100:8 | 7B LoRA"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[2:6] == ["4 × 2", str(config.update.micro_batch), "8", "in process"]
    page = (RECIPES / "own_captions.md").read_text("utf-8")
    whole, of, step = cells[9], cells[10], cells[12]
    assert f"{whole} GB a GPU of {of}" in page and f"below: {step} here" in page
    least = float(step.split()[0]) * config.steps / 60
    assert f"{config.steps} steps take at least {math.ceil(least)} minutes" in page
