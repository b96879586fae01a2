"""`gotr1` for the recipes' test: the command as it was typed, in sizes for a CPU.

The test puts a program named `gotr1` on PATH that runs this file. It changes what a command was
given in these ways only, and then hands it to `gotr1_jax.cli`:

- training, `compile` and `tokenize-images` get the few steps, rows and tokens of `SMALL`, and one
  CPU device in place of a mesh of accelerators, which `compile` compiles for; it takes sizes from
  the small checkpoints in place of `--policy-size` and `--judge-size`;
- HPS's file is read with the sizes of the small one, which it does not say itself;
- a benchmark is scored by a server of the test, in place of detectors that would be downloaded and
  of the small judge, who says nothing that can be read;
- commands that draw images draw two short ones of the first two captions;
- the first training, and the first `compile`, of a job of GoT-R1's models and of the shapes world
  is run. Of another one of the same job and models the configuration is read with all that was
  typed, the files and checkpoints that the command line names must be there, and the run of before
  is copied: its rewards and judges are not asked here. So is what any command wrote that is typed
  once more. (Other tests train in all of these ways.)

Every command as it was typed, with its folder, is a line of $RECIPE_LOG.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
from pathlib import Path

STORE = Path(os.environ["RECIPE_STORE"])
GRPO = {
    "steps": "1",
    "rollout.captions_per_step": "2",
    "rollout.samples_per_caption": "2",
    "rollout.max_plan_tokens": "8",
    "rollout.decode_batch": "4",
    "update.micro_batch": "2",
    "evaluation.captions": "2",
    "evaluation.samples": "2",
    "evaluation.shown": "1",
}
# The small judge says nothing that can be read: its scores are read off, and no box is.
LARGE = {"mesh.fsdp": "1", "mesh.tensor": "1", "judge.questions.reading": "expected",
         "judge.questions.boxes_tokens": "4", "reward.failure_limit": "1"}  # fmt: skip
SFT = {"steps": "1", "batch_size": "2", "micro_batch": "2"}
# By the beginning of a configuration's name and the job.
SMALL = {
    ("gotr1", "grpo"): {**GRPO, **LARGE},
    ("reasongen", "grpo"): {**GRPO, **LARGE},
    ("shapes", "grpo"): {**GRPO, "checkpoint.every": "1"},
    ("gotr1", "sft"): SFT,
    ("reasongen", "sft"): SFT,
}
# Whose run stands for one of these.
SAME = {"reasongen": "gotr1"}
# Settings that name files and checkpoints, which have to be there.
PATHS = ("policy.init", "init", "vq", "captions.source", "evaluation.source", "data.source",
         "judge.qwen_vl.checkpoint")  # fmt: skip
# Of commands that draw images.
DRAWN = {
    "generate": {"n": "1", "max-plan-tokens": "8"},
    "strip": {"captions": "1", "max-plan-tokens": "8"},
    "geneval": {"n": "1", "max-plan-tokens": "8"},
    "t2i_compbench": {"n": "1", "max-plan-tokens": "8"},
    "dpg": {"n": "1", "max-plan-tokens": "8"},
    "shapes": {"captions": "1", "samples": "1"},
}
OUTPUTS = ("out", "to")


def main(words: list[str]) -> int:
    """Runs `gotr1 WORDS` as above; its exit code."""
    log = {"words": words, "folder": os.getcwd()}
    with open(os.environ["RECIPE_LOG"], "a", encoding="utf-8") as file:
        file.write(json.dumps(log) + "\n")
    os.environ["JAX_PLATFORMS"] = "cpu"
    small = shrink(words)
    index = STORE.parent / "index.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    key, target = split_output(small)
    if words[0] in ("train", "compile"):
        job, family, run_dir = read_configuration(words)
        key, target = f"{words[0]} {job} {family}", run_dir if words[0] == "train" else None
    if key in known:
        if target and not Path(target).exists():
            copy(Path(known[key]), Path(target))
        print(f"as before: {key}")
        return 0
    if any(word.endswith(".pt") for word in small):
        read_small_hps()
    from gotr1_jax.cli import run

    code = run(small)
    if code == 0 and key:
        stored = STORE / f"{len(known):03d}"
        if target and Path(target).exists():
            copy(Path(target), stored)
        index.write_text(json.dumps({**known, key: str(stored)}))
    return code


def read_configuration(words: list[str]) -> tuple[str, str, str]:
    """(job, models, run directory) of a command, whose configuration is read as it was typed."""
    import importlib

    from gotr1_jax.jobs import JOBS

    path = Path(value_of(words, "config"))
    job = job_of(words)
    module, schema, _ = JOBS[job]
    typed = words[2:] if words[0] == "train" else words[1:]
    values = override(typed, dict.fromkeys(("config", "topology", "policy-size", "judge-size")))
    config = getattr(importlib.import_module(module), schema).from_file(path, values)
    for option in PATHS:
        value = value_of(words, option)
        if value not in ("", "shapes", "embedded") and not glob.glob(value):
            sys.exit(f"--{option} {value} is not there")
    family = path.stem.split("_")[0]
    return job, SAME.get(family, family), config.run_dir


def job_of(words: list[str]) -> str:
    name = Path(value_of(words, "config")).stem
    return next(word for word in (*words[:2], *name.split("_")) if word in ("grpo", "sft"))


def read_small_hps() -> None:
    from tiny_clip import TINY

    from gotr1_jax.convert import clip

    for function in (clip.convert_clip, clip.read_clip_config):
        defaults = function.__defaults__ or ()
        function.__defaults__ = tuple(TINY if x is clip.VIT_H_14 else x for x in defaults)


def shrink(words: list[str]) -> list[str]:
    """The command with small sizes in place of its own."""
    command = words[0]
    if command in ("train", "compile", "tokenize-images"):
        name = Path(value_of(words, "config")).stem
        words = override(
            words, {**SMALL[name.split("_")[0], job_of(words)], "mesh.cpu_devices": "1"}
        )
        if command == "compile":
            words = override(words, {"topology": "cpu:1"})
            for model, key in (("policy", "policy.init"),
                               ("judge", "judge.qwen_vl.checkpoint")):  # fmt: skip
                if value_of(words, f"{model}-size"):
                    small = str(STORE.parent / "sizes" / model)
                    words = override(words, {f"{model}-size": None, key: small})
        if command == "tokenize-images":
            words = override(words, {"steps": None, "micro_batch": None, "batch_size": None})
    kind = words[1] if command == "eval" else command
    if command == "eval" and kind != "shapes":
        judge = value_of(words, "judge.qwen_vl.checkpoint")
        if judge and not Path(judge).is_dir():
            sys.exit(f"no judge at {judge}")
        asked = {"judge.http.url": os.environ["RECIPE_JUDGE"], "judge.http.model": "small"}
        words = override(words, {"judge.qwen_vl.checkpoint": None, "scorer": "judge",
                                 "judge.kind": "http", **asked})  # fmt: skip
    words = override(words, DRAWN.get(kind, {}))
    prompts = value_of(words, "prompts")
    if command == "generate" and prompts:
        few = Path(prompts).with_suffix(".few")
        few.write_text("".join(Path(prompts).read_text().splitlines(keepends=True)[:2]))
        words = override(words, {"prompts": str(few)})
    return words


def value_of(words: list[str], option: str) -> str:
    return words[words.index(f"--{option}") + 1] if f"--{option}" in words else ""


def override(words: list[str], values: dict[str, str] | dict[str, str | None]) -> list[str]:
    """`words` with these options in place of those of the same name; None: without it."""
    words = list(words)
    for option, value in values.items():
        while (name := f"--{option}") in words:
            at = words.index(name)
            del words[at : at + 2]
        if value is not None:
            words += [name, value]
    return words


def split_output(words: list[str]) -> tuple[str, str | None]:
    """The command without the path that it writes, and that path (None: it names none)."""
    if words[0] == "judge":
        return "", None
    for option in OUTPUTS:
        if value := value_of(words, option):
            return " ".join(override(words, {option: None})), value
    return "", None


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".lock"))
    else:
        shutil.copy(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
