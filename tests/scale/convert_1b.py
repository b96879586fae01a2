"""Memory and time of converting a checkpoint of the 1B's size; run by hand.

    python tests/scale/convert_1b.py make DIR [--format safetensors|bin] [--dtype bfloat16]
        [--layers N]
    python tests/scale/convert_1b.py measure DIR OUT [--turns 3]

`make` writes random weights under the names and shapes of the released 1B.
`measure` runs `gotr1 convert --from DIR --to OUT` and `cp` of the weights in turns, and prints
the peak of the memory that the converter itself allocates (RssAnon, sampled) and both times.
OUT is deleted after every turn.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np

from gotr1_jax.convert.config_json import config_to_json
from gotr1_jax.convert.writer import OutTensor, dtype_code, write_safetensors
from gotr1_jax.models.config import JANUS_PRO_1B

ROOT = Path(__file__).resolve().parents[2]
TENSORS = ROOT.parent / "shared" / "goldens" / "janus_pro_1b_tensors.json"
EMBEDDED = ROOT / "gotr1_jax" / "assets" / "shapes"
KINDS = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def names(layers: int | None) -> dict[str, tuple[int, ...]]:
    """Released names and shapes, of the first `layers` decoder layers."""
    stored = json.loads(TENSORS.read_text())["tensors"]
    found = {name: re.match(r"language_model\.model\.layers\.(\d+)\.", name) for name in stored}
    return {
        name: tuple(stored[name])
        for name, match in found.items()
        if match is None or layers is None or int(match[1]) < layers
    }


def draw(shape: tuple[int, ...], seed: int, dtype: str) -> np.ndarray:
    """Random bits of sane numbers, fast: one block of noise, repeated."""
    noise = np.random.default_rng(seed).standard_normal(65536, np.float32) * np.float32(0.02)
    return np.resize(noise.astype(KINDS[dtype]), shape)


def make(directory: Path, form: str, dtype: str, layers: int | None) -> None:
    directory.mkdir(parents=True)
    config = config_to_json(JANUS_PRO_1B, dtype)
    if layers is not None:
        config["language_config"]["num_hidden_layers"] = layers
    (directory / "config.json").write_text(json.dumps(config))
    for file in EMBEDDED.glob("*.json"):
        if file.name != "config.json":
            shutil.copy(file, directory)
    shapes = names(layers)
    if form == "safetensors":
        out = [
            OutTensor(name, shape, partial(draw, shape, i, dtype), dtype_code(dtype))
            for i, (name, shape) in enumerate(shapes.items())
        ]
        write_safetensors(directory / "model.safetensors", out)
        return
    import torch

    torch.manual_seed(0)
    noise = torch.randn(1 << 22, dtype=getattr(torch, dtype)) * 0.02
    state = {n: noise.repeat(1 + int(np.prod(s)) // len(noise))[: int(np.prod(s))].clone().view(s) for n, s in shapes.items()}  # fmt: skip  # noqa: E501
    torch.save(state, directory / "pytorch_model.bin")


def anonymous_memory(process: int) -> int:
    """Bytes that a process has allocated itself; 0 when it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 1024 * int(found[1]) if found else 0


def convert(source: Path, out: Path) -> tuple[float, int]:
    """(seconds, peak of anonymous memory) of the command, start of Python and all."""
    command = [sys.executable, "-m", "gotr1_jax.cli", "convert", "--from", source, "--to", out]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen([str(word) for word in command], cwd=ROOT) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_memory(process.pid))
            time.sleep(0.02)
    if process.returncode:
        sys.exit(process.returncode)
    return time.perf_counter() - start, peak


def copy(source: Path, out: Path) -> float:
    """Seconds that `cp` takes to the same state: everything written to the disk."""
    out.mkdir()
    files = [str(f) for f in source.iterdir() if f.suffix in (".bin", ".safetensors")]
    start = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", *files, str(out)], check=True)
    subprocess.run(["sync", *(str(f) for f in out.iterdir())], check=True)
    return time.perf_counter() - start


def measure(source: Path, out: Path, turns: int) -> None:
    ours, theirs, peaks = [], [], []
    for _ in range(turns):
        shutil.rmtree(out, ignore_errors=True)
        seconds, peak = convert(source, out)
        shutil.rmtree(out)
        ours.append(seconds)
        peaks.append(peak)
        theirs.append(copy(source, out))
        shutil.rmtree(out)
    ratios = [a / b for a, b in zip(ours, theirs)]
    print(
        f"convert {statistics.median(ours):.1f} s, cp {statistics.median(theirs):.1f} s, ratio "
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {turns} turns); "
        f"peak anonymous memory {max(peaks) / 1e9:.2f} GB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("directory", type=Path)
    maker.add_argument("--format", choices=("safetensors", "bin"), default="safetensors")
    maker.add_argument("--dtype", choices=tuple(KINDS), default="bfloat16")
    maker.add_argument("--layers", type=int)
    measurer = commands.add_parser("measure")
    measurer.add_argument("source", type=Path)
    measurer.add_argument("out", type=Path)
    measurer.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    if options.command == "make":
        make(options.directory, options.format, options.dtype, options.layers)
    else:
        measure(options.source, options.out, options.turns)


if __name__ == "__main__":
    main()
