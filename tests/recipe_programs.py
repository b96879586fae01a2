"""Stand-ins for what the recipes need besides `gotr1`: downloads, clusters, Python environments."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from record_files import made, write_parquet, write_tar
from safetensors.numpy import load_file
from tiny import write_shapes
from tiny_clip import TINY as TINY_CLIP
from tiny_clip import write_vocabulary
from tiny_qwen import write_tiny_qwen
from torch_clip import TorchClip, hps_file, shake

from gotr1_jax.shapes.dataset import ShapesSource

ROOT = Path(__file__).resolve().parents[1]
LOGGED = '#!/usr/bin/env bash\n{ printf "%s" "${0##*/}"; printf "|%s" "$@"; echo; } >>"$LOG"\n'
GOTR1 = f'#!/usr/bin/env bash\nexec "{sys.executable}" "{ROOT}/tests/small_gotr1.py" "$@"\n'
# `-m venv DIR` makes a folder with the programs that an environment has; nothing is installed.
PYTHON = f"""#!/usr/bin/env bash
if [[ "$1 ${{2:-}}" == "-m venv" ]]; then
  mkdir -p "$3/bin" && cp "$PROGRAMS"/{{python,python3,pip,gotr1,hf}} "$3/bin/"
  echo 'PATH="$PWD/.venv/bin:$PATH"' >"$3/bin/activate"
elif [[ "$1 ${{2:-}}" == "-m pip" ]]; then
  shift && exec "$PROGRAMS/pip" "${{@:2}}"
else
  exec "{sys.executable}" "$@"
fi
"""
# hf download ID [FILE] [--repo-type dataset] --local-dir DIR: from $HUB.
HF = (
    LOGGED
    + """[[ "$1" == download && -d "$HUB/$2" ]] || { echo "no $2" >&2; exit 1; }
for target; do :; done
mkdir -p "$target"
if [[ "$3" == --* ]]; then cp -r "$HUB/$2/." "$target"; else cp "$HUB/$2/$3" "$target"; fi
"""
)
# git clone URL DIR: from $HUB/git/DIR's name; the checkout itself is there.
GIT = (
    LOGGED
    + """[[ "$1" == clone ]] || exit 1
[[ "$3" == gotr1_jax ]] || { mkdir -p "$3" && cp -r "$HUB/git/$(basename "$3")/." "$3"; }
"""
)
# Runs the script as Slurm does, for jobs of one node.
SBATCH = (
    LOGGED
    + """[[ " $* " != *" --nodes "* ]] || exit 0
while [[ "$1" == --* ]]; do shift 2; done
script="$1"; shift
cp "$script" "$HOME/slurm_script"
SLURM_JOB_ID=7 SLURM_SUBMIT_DIR="$PWD" bash "$HOME/slurm_script" "$@"
"""
)
SRUN = LOGGED + 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
# The slice is there at once; its worker is this machine, in $HOME.
GCLOUD = (
    LOGGED
    + """if [[ "$4" == list ]]; then
  echo ACTIVE
elif [[ "$4" == scp ]]; then
  cp "$5" "$HOME/gotr1_jax.tar.gz"
elif [[ "$4" == ssh ]]; then
  for word in "$@"; do command="${word#--command=}"; done
  cd "$HOME" && exec bash -c "$command"
fi
"""
)
PROGRAMS = {
    "gotr1": GOTR1, "python3": PYTHON, "python": PYTHON, "hf": HF, "git": GIT, "sbatch": SBATCH,
    "srun": SRUN, "gcloud": GCLOUD, "nvidia-smi": '#!/bin/sh\necho "GPU 0: NVIDIA"\n',
    **dict.fromkeys(("pip", "docker", "kubectl", "scontrol", "vllm", "mountpoint", "curl"), LOGGED),
}  # fmt: skip
DPG = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
0,x,,1,0,entity,whole,entity - whole (star),Is there a star?
"""  # noqa: E501


def write_programs(folder: Path) -> None:
    """The stand-ins, for PATH."""
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)


def captions(count: int, split: str = "train") -> list[str]:
    """Different captions of the shapes world, whose tokenizer the small checkpoints have."""
    source = ShapesSource(split, 4 * count)
    return list(dict.fromkeys(source.text(i)[0] for i in range(4 * count)))[:count]


def write_pickled(source: Path, folder: Path, shards: int) -> None:
    """A checkpoint as released ones are: pickled tensors in files with an index, or in one."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {k: torch.from_numpy(v) for k, v in load_file(source / "model.safetensors").items()}
    names = sorted(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    files = [f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)]
    for i, file in enumerate(files):
        torch.save({name: tensors[name] for name in names[i::shards]}, folder / file)
    index = {"metadata": {}, "weight_map": {n: files[i % shards] for i, n in enumerate(names)}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_hub(hub: Path, sizes: Path) -> None:
    """What the recipes download, in the formats of the real files, seeded and tiny."""
    janus = write_shapes(sizes / "policy")
    shards = {"gogoduan/GoT-R1-7B": 2, "gogoduan/GoT-R1-1B": 1,
              "deepseek-ai/Janus-Pro-1B": 1, "deepseek-ai/Janus-Pro-7B": 2}  # fmt: skip
    for name, count in shards.items():
        write_pickled(janus, hub / name, count)
        cache_as_downloaded(hub / name, hub / "cache" / f"models--{name.replace('/', '--')}")
    shutil.copytree(write_tiny_qwen(sizes / "judge"), hub / "Qwen/Qwen2.5-VL-7B-Instruct")
    (hub / "xswu/HPSv2").mkdir(parents=True)
    hps_file(hub / "xswu/HPSv2/HPS_v2.1_compressed.pt", shake(TorchClip(TINY_CLIP)))
    (hub / "openai/clip-vit-base-patch32").mkdir(parents=True)
    write_vocabulary(hub / "openai/clip-vit-base-patch32")
    write_reasongen_records(hub / "Franklin0/ReasonGen-R1-SFT-230k")
    write_benchmarks(hub / "git")


def cache_as_downloaded(folder: Path, cache: Path) -> None:
    """The same where the hub's own cache has it: configurations name some models by their id."""
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    shutil.copytree(folder, cache / "snapshots" / ("0" * 40))


def write_reasongen_records(folder: Path) -> None:
    """A few records with the columns of ReasonGen-R1's data set."""
    import pyarrow.parquet as pq

    file = write_parquet(folder, made(6))
    table = pq.read_table(file)
    texts = {
        "short_caption": "a star", "paraphrases": ["one star"], "varied_captions": ["a red star"],
        "tags": ["star", "red"], "object_prompts": ["a star", "a moon"],
    }  # fmt: skip
    table = table.append_column("augmented_prompts", [[json.dumps(texts)] * len(table)])
    names = {"caption": "brief_caption", "plan": "detailed_caption"}
    pq.write_table(table.rename_columns([names.get(n, n) for n in table.column_names]), file)


def write_benchmarks(git: Path) -> None:
    """Two captions a benchmark, in their own files."""
    few = captions(2, "heldout")
    geneval = git / "geneval/prompts"
    geneval.mkdir(parents=True)
    items = [{"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": few[0]}]
    text = "".join(json.dumps(item) + "\n" for item in items)
    (geneval / "evaluation_metadata.jsonl").write_text(text, encoding="utf-8")
    compbench = git / "T2I-CompBench/examples/dataset"
    compbench.mkdir(parents=True)
    for name in ("color", "shape", "texture", "spatial", "non_spatial", "complex"):
        (compbench / f"{name}_val.txt").write_text(few[0] + "\n", encoding="utf-8")
    dpg = git / "ELLA/dpg_bench"
    (dpg / "prompts").mkdir(parents=True)
    (dpg / "prompts" / "0.txt").write_text(few[0], encoding="utf-8")
    (dpg / "dpg_bench.csv").write_text(DPG, encoding="utf-8")


def write_own_files(folder: Path) -> None:
    """What the pages say that a user brings: captions, records."""
    (folder / "captions.txt").write_text("\n".join(captions(80)) + "\n", encoding="utf-8")
    metadata = {"tag": "single_object", "include": [{"class": "star", "count": 1}]}
    text = json.dumps({**metadata, "prompt": captions(1, "heldout")[0]})
    (folder / "evaluation_metadata.jsonl").write_text(text + "\n", encoding="utf-8")
    (folder / "heldout.txt").write_text("\n".join(captions(8, "heldout")) + "\n", encoding="utf-8")
    write_tar(folder / "records", made(6))
