"""Which settings fit where: `gotr1 compile` of the GoT-R1 recipes, one line a setting.

    python tests/scale/fit_table.py measure RESULTS.jsonl [PATTERN]   # hours on a few cores
    python tests/scale/fit_table.py show RESULTS.jsonl                # Markdown
    python tests/scale/fit_table.py judges RESULTS.jsonl              # likewise, of Qwen3-VL

`measure` continues where it was stopped; compiled programs are stored next to RESULTS.
PATTERN is part of a setting's name ("7b lora v5e:4x4", "judge 8b").
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
# An evaluation samples all rows at once: no more than a step.
EVERYWHERE = "--evaluation.captions 64"
# Without the judge's own 17 GB: it runs behind a server.
REMOTE = "--judge.kind http --judge.http.url http://judge:8000/v1 --judge.http.model Qwen2.5-VL-7B"


def _layout(
    fsdp: int, tensor: int, remat: str, micro: int, captions: int = 0, decode: int = 8
) -> str:
    """captions: of those of a step, drawn at once; 0: all eight."""
    return (
        f"--mesh.fsdp {fsdp} --mesh.tensor {tensor} --policy.remat {remat} "
        f"--update.micro_batch {micro} --rollout.captions_at_once {captions} "
        f"--rollout.decode_batch {decode}"
    )


# Qwen3-VL, each as the judge of the 1B with adapters.
JUDGES = ("2b", "4b", "8b", "32b")
JUDGED = ("v5e:4x4", "v6e:8x8", "v5p:4x4x4", "h100:1", "h200:1")

LAYOUTS = {
    ("1b", "h200:1"): _layout(1, 1, "full", 16, decode=32),
    ("1b", "h200:8"): _layout(8, 1, "full", 64, decode=32),
    ("1b", "h100:1"): _layout(1, 1, "full", 8, captions=4, decode=32),
    ("1b", "h100:8"): _layout(8, 1, "full", 64, decode=32),
    ("1b", "v5e:4x4"): _layout(4, 4, "full", 32),
    ("1b", "v6e:8x8"): _layout(16, 4, "full", 128),
    ("1b", "v5p:4x4x4"): _layout(16, 4, "full", 128),
    ("1b", "v5e:16x16"): _layout(64, 4, "full", 128),
    ("7b", "h200:1"): _layout(1, 1, "full", 4, captions=2, decode=32),
    ("7b", "h200:8"): _layout(8, 1, "full", 32, decode=32),
    ("7b", "h100:1"): _layout(1, 1, "full", 2, captions=1, decode=32),
    ("7b", "h100:8"): _layout(4, 2, "full", 16, decode=32),
    ("7b", "v5e:4x4"): _layout(4, 4, "full", 16, captions=2),
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
    judge: str = ""  # a size of Qwen3-VL; empty: Qwen2.5-VL-7B

    @property
    def name(self) -> str:
        judge = f" judge {self.judge}" if self.judge else ""
        return f"{self.size} {self.mode} {self.topology}{' remote' if self.remote else ''}{judge}"

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
SETTINGS += [Setting("1b", "lora", where, judge=judge) for where in JUDGED for judge in JUDGES]


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
    from gotr1_jax.aot import read_job
    from gotr1_jax.aot.job import ModelSizes
    from gotr1_jax.aot.measure import Compiler
    from gotr1_jax.aot.report import compile_job, to_json
    from gotr1_jax.aot.target import find_target
    from gotr1_jax.errors import GotR1Error

    config = read_job(CONFIGS / f"gotr1_{setting.size}_grpo.yaml", setting.overrides.split())
    target, start = find_target(setting.topology), time.perf_counter()
    try:
        report = compile_job(
            config, target, ModelSizes(setting.size, setting.judge or "7b"),
            Compiler(target, known), only="judge" if setting.judge else "",
        )  # fmt: skip
    except GotR1Error as error:
        return {"error": str(error)}
    return to_json(report) | {"seconds": time.perf_counter() - start}


def show(out: Path) -> str:
    """The table: GB are 10^9 bytes on the fullest device.

    Of a setting with the judge in process and the one with a server the first that fits.
    """
    lines = {line["name"]: line for line in _lines(out)}
    columns = {
        "update": "update", "plan loop": "plan loop, last bucket",
        "image loop": "image loop, last bucket",
    }  # fmt: skip
    head = ["where", "policy", "mesh", "micro", "captions", "judge", *columns]
    head += ["whole job", "of", "fits", "step at least"]
    rows = ["| " + " | ".join(head) + " |", "|" + "-|" * len(head)]
    for size, topology in sorted(LAYOUTS, key=lambda key: (key[1], key[0])):
        for mode in MODES:
            both = [Setting(size, mode, topology, remote).name for remote in (False, True)]
            found = [lines[name] for name in both if name in lines and "error" not in lines[name]]
            if not found:
                continue
            line = next((one for one in found if one["whole_job"]["fits"]), found[-1])
            rows.append("| " + " | ".join(_cells(line, size, mode, columns)) + " |")
    return "\n".join(rows)


def _cells(line: dict[str, Any], size: str, mode: str, columns: dict[str, str]) -> list[str]:
    peaks = {p["name"]: p["peak_bytes"] for p in line["programs"]}
    whole, words = line["whole_job"], line["overrides"].split()
    given = dict(zip(words[::2], words[1::2]))
    seconds, mesh = whole["step_seconds_at_least"], whole["mesh"]
    captions = given["--rollout.captions_at_once"]
    return [
        line["topology"], f"{size.upper()} {'LoRA' if mode == 'lora' else mode}",
        f"{mesh['fsdp']} × {mesh['tensor']}", given["--update.micro_batch"],
        "8" if captions == "0" else captions,
        "server" if "--judge.kind" in given else "in process",
        *(_gb(peaks.get(name)) for name in columns.values()),
        _gb(whole["peak_bytes"]), _gb(line["hbm_bytes"]),
        "yes" if whole["fits"] else "**no**",
        f"{seconds:.1f} s" if seconds and whole["fits"] else "",
    ]  # fmt: skip


def show_judges(out: Path) -> str:
    """The table of Qwen3-VL as a judge, of the settings that were measured."""
    lines = {line["name"]: line for line in _lines(out)}
    columns = ("judge: images", "judge: questions", "judge: answers, last bucket")
    head = ["where", "judge", "its weights and images", *(c.partition(": ")[2] for c in columns)]
    rows = ["| " + " | ".join([*head, "with all arrays", "of", "fits"]) + " |", "|" + "-|" * 9]
    for setting in SETTINGS:
        line = lines.get(setting.name)
        if not setting.judge or line is None or "error" in line:
            continue
        peaks = {p["name"]: p["peak_bytes"] for p in line["programs"]}
        whole = line["whole_job"]
        # Of programs alone, as some are left out.
        fits = all(p["fits"] for p in line["programs"]) and whole["peak_bytes"] <= line["hbm_bytes"]
        cells = [
            line["topology"], f"Qwen3-VL-{setting.judge.upper()}",
            _gb(whole["lasting_bytes"]["judge"]), *(_gb(peaks.get(name)) for name in columns),
            _gb(whole["peak_bytes"]), _gb(line["hbm_bytes"]),
            "yes" if fits else "**no**",
        ]  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:.1f}"


if __name__ == "__main__":
    tables = {"show": show, "judges": show_judges}
    if len(sys.argv) < 3 or sys.argv[1] not in ("measure", *tables):
        sys.exit(__doc__)
    if sys.argv[1] in tables:
        print(tables[sys.argv[1]](Path(sys.argv[2])))
    else:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
        logging.getLogger("gotr1_jax").setLevel(logging.INFO)
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_compilation_cache", False)
        measure(Path(sys.argv[2]), " ".join(sys.argv[3:]))
