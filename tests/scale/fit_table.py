"""Which settings fit where: `gotr1 compile` of the GoT-R1 recipes, one line a setting.

    python tests/scale/fit_table.py measure RESULTS.jsonl [PATTERN]   # hours on a few cores
    python tests/scale/fit_table.py show RESULTS.jsonl                # Markdown

`measure` goes on where it was stopped; programs that it has compiled lie beside RESULTS.
PATTERN is part of a setting's name ("7b lora v5e:4x4").
"""

from __future__ import annotations

import json
import logging
import shelve
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODES = {"lora": "", "full": "--policy.lora null --policy.param_dtype float32"}
# A rollout of an evaluation is drawn at once: no more rows than a step's.
EVERYWHERE = "--evaluation.captions 64"
# Without the judge's own 17 GB: it runs behind a server.
REMOTE = "--judge.kind http --judge.http.url http://judge:8000/v1 --judge.http.model Qwen2.5-VL-7B"


def _layout(
    fsdp: int, tensor: int, remat: str, micro: int, captions: int = 0, decode: int = 32
) -> str:
    """captions: of those of a step, drawn at once; 0: all eight."""
    return (
        f"--mesh.fsdp {fsdp} --mesh.tensor {tensor} --policy.remat {remat} "
        f"--update.micro_batch {micro} --rollout.captions_at_once {captions} "
        f"--rollout.decode_batch {decode}"
    )


LAYOUTS = {
    ("1b", "h200:1"): _layout(1, 1, "full", 16),
    ("1b", "h200:8"): _layout(8, 1, "full", 64),
    ("1b", "h100:1"): _layout(1, 1, "full", 8, captions=4),
    ("1b", "h100:8"): _layout(8, 1, "full", 64),
    ("1b", "v5e:4x4"): _layout(4, 4, "full", 32, captions=2),
    ("1b", "v6e:8x8"): _layout(16, 4, "full", 128),
    ("1b", "v5p:4x4x4"): _layout(16, 4, "full", 128),
    ("1b", "v5e:16x16"): _layout(64, 4, "full", 128),
    ("7b", "h200:1"): _layout(1, 1, "full", 4, captions=2),
    ("7b", "h200:8"): _layout(8, 1, "full", 32),
    ("7b", "h100:1"): _layout(1, 1, "full", 2, captions=1),
    ("7b", "h100:8"): _layout(4, 2, "full", 16),
    ("7b", "v5e:4x4"): _layout(4, 4, "full", 16, captions=1),
    ("7b", "v6e:8x8"): _layout(16, 4, "full", 64),
    ("7b", "v5p:4x4x4"): _layout(16, 4, "full", 128),
    ("7b", "v5e:16x16"): _layout(64, 4, "full", 64),
}


@dataclass(frozen=True)
class Setting:
    """A model, what of it is trained, where, and with which overrides."""

    size: str
    mode: str
    topology: str
    remote: bool = False

    @property
    def name(self) -> str:
        return f"{self.size} {self.mode} {self.topology}" + (" remote" if self.remote else "")

    @property
    def overrides(self) -> str:
        parts = [MODES[self.mode], LAYOUTS[self.size, self.topology], EVERYWHERE]
        return " ".join(filter(None, [*parts, REMOTE if self.remote else ""]))


SETTINGS = [
    Setting(size, mode, topology, remote)
    for size, topology in LAYOUTS
    for remote in (False, True)
    for mode in MODES
]


def measure(out: Path, pattern: str) -> None:
    """Append a line for every setting that has none yet."""
    done = {line["name"] for line in _lines(out)} if out.exists() else set()
    with shelve.open(str(out.with_suffix(".programs"))) as known:
        for setting in SETTINGS:
            if setting.name in done or pattern not in f"{setting.name} ":
                continue
            line = {"name": setting.name, "overrides": setting.overrides} | _measured(
                setting, known
            )
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(setting.name, line.get("error") or line["whole_job"]["peak_bytes"], flush=True)


def _measured(setting: Setting, known: Any) -> dict[str, Any]:
    from gotr1_jax.ahead import read_job
    from gotr1_jax.ahead.grpo import Models
    from gotr1_jax.ahead.measure import Compiler
    from gotr1_jax.ahead.report import compile_job, to_json
    from gotr1_jax.ahead.target import find_target
    from gotr1_jax.errors import GotR1Error

    config = read_job(CONFIGS / f"gotr1_{setting.size}_grpo.yaml", setting.overrides.split())
    target, start = find_target(setting.topology), time.perf_counter()
    try:
        report = compile_job(config, target, Models(setting.size, "7b"), Compiler(target, known))
    except GotR1Error as error:
        return {"error": str(error)}
    return to_json(report) | {"seconds": time.perf_counter() - start}


def show(out: Path) -> str:
    """The table: GB are 10^9 bytes on the fullest device."""
    columns = ("update", "old log-probabilities", "plan loop, last bucket")
    columns += ("picture loop, last bucket", "picture decoder", "judge: questions")
    head = ["setting", "mesh (fsdp x tensor)", "micro", *columns, "whole job", "of", "fits", "step"]
    rows = ["| " + " | ".join(head) + " |", "|" + "-|" * len(head)]
    for line in _lines(out):
        if "error" in line:
            rows.append(f"| {line['name']} | {line['error']} |")
            continue
        peaks = {p["name"]: p["peak_bytes"] for p in line["programs"]}
        whole, words = line["whole_job"], line["overrides"].split()
        seconds = whole["step_seconds_at_least"]
        mesh = f"{whole['mesh']['fsdp']} x {whole['mesh']['tensor']}"
        cells = [line["name"], mesh, words[words.index("--update.micro_batch") + 1]]
        cells += [_gb(peaks.get(name)) for name in columns]
        cells += [_gb(whole["peak_bytes"]), _gb(line["hbm_bytes"])]
        cells += ["yes" if whole["fits"] else "**no**", f"{seconds:.1f} s" if seconds else "?"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.1f}"


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("measure", "show"):
        sys.exit(__doc__)
    if sys.argv[1] == "show":
        print(show(Path(sys.argv[2])))
    else:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("gotr1_jax").setLevel(logging.INFO)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        measure(Path(sys.argv[2]), " ".join(sys.argv[3:]))
