"""`gotr1 convert`: writes any checkpoint that this project reads in the released layout.

For a policy that is config.json ("multi_modality"), safetensors, tokenizer and processor files.
Judges are converted too: Qwen2.5-VL and Qwen3-VL to their released names, HPS v2.1's pickle and
other CLIPs (PickScore) to a directory in the format of `transformers.CLIPModel`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_jax.errors import InputError

if TYPE_CHECKING:
    from gotr1_jax.convert.open_checkpoint import OpenCheckpoint
    from gotr1_jax.convert.translate import WrittenCheckpoint
    from gotr1_jax.parallel.progress import Progress

DTYPES = ("float32", "bfloat16")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_MB = 10**6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = "Convert a checkpoint to this project's layout, the released one."
    parser.add_argument(
        "--from", dest="source", required=True, metavar="DIR_OR_ID",
        help="directory, run directory or id of the Hugging Face hub; for HPS its .pt file",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub id")
    add_target_arguments(parser)


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about the target, which `gotr1 export` has too."""
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new directory")
    parser.add_argument(
        "--dtype", help=f"{' or '.join(DTYPES)}; without it each tensor keeps its own"
    )
    parser.add_argument(
        "--shard-size", default="5GB", metavar="SIZE",
        help="weights above it are split into files of at most this (5GB, 500MB; default 5GB)",
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Converts, and prints one line about what was written."""
    check_dtype(options.dtype)
    shard_size = parse_size(options.shard_size)
    # Imported late: a wrong argument is answered without waiting for jax.
    from gotr1_jax.convert.clip import convert_clip, is_clip
    from gotr1_jax.convert.find import find_checkpoint
    from gotr1_jax.convert.open_checkpoint import open_checkpoint
    from gotr1_jax.convert.qwen_json import MODEL_TYPES
    from gotr1_jax.convert.qwen_vl import convert_qwen, is_qwen
    from gotr1_jax.convert.reader import model_type_of

    source = find_checkpoint(options.source, options.revision)
    check_target(options.to, source)
    if is_clip(source):
        convert_clip(source, options.to, dtype=options.dtype or "bfloat16")
        print(f"{options.to}: CLIP in the format of transformers.CLIPModel")
    elif is_qwen(source):
        with _Megabytes(options.to.name) as count:
            files = convert_qwen(
                source, options.to, dtype=options.dtype, shard_size=shard_size, progress=count
            )
        name = MODEL_TYPES[model_type_of(source)]
        print(f"{options.to}: {name} in {files} file{'s' if files > 1 else ''}")
    else:
        opened = open_checkpoint(source)
        write(options.to, opened, "original", dtype=options.dtype, shard_size=shard_size)


class _Megabytes:
    """A progress line, called with (bytes done, all bytes); shown from the first call on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._progress: Progress | None = None

    def __enter__(self) -> _Megabytes:
        return self

    def __call__(self, done: int, total: int) -> None:
        from gotr1_jax.parallel.progress import Progress

        if self._progress is None:
            self._progress = Progress(self._name, max(1, total // _MB), unit="megabyte")
            self._progress.update(0)
        self._progress.update(done // _MB)

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.close()


def write(
    target: Path, opened: OpenCheckpoint, form: Any,
    describe: Callable[[], str] | None = None, **settings: Any,
) -> WrittenCheckpoint:  # fmt: skip
    """`translate_checkpoint` with a progress line, the list of unused tensors and a last line.

    describe: what the weights are, once they are written; a line before the last.

    Rounded weights of a run's model that are written in float32 are named for what they are.
    """
    from gotr1_jax.convert.find import run_of_model
    from gotr1_jax.convert.translate import translate_checkpoint

    stored = {tensor.dtype for name, tensor in opened.tensors.items() if name not in opened.unused}
    is_model = run_of_model(opened.path) is not None and not settings.get("changes")
    if is_model and settings.get("dtype") == "float32" and stored != {"F32"}:
        print(
            f"{opened.path} holds rounded weights ({', '.join(sorted(stored))}), which stay "
            "rounded; gotr1 export of the run adds base and adapters exactly, from its checkpoint"
        )
    if opened.unused:
        print(f"stored but used by nothing: {', '.join(opened.unused)}")
    start = time.monotonic()
    with _Megabytes(target.name) as count:
        written = translate_checkpoint(target, opened, form, progress=count, **settings)
    seconds = time.monotonic() - start
    if describe is not None:
        print(describe())
    notes = ""
    if written.dropped:
        notes += f", {len(written.dropped)} unused ones left out"
    if written.added:
        notes += f", {len(written.added)} unused ones added as zeros"
    print(
        f"{written.path}: {written.tensors} tensors{notes}, {written.size / _MB:.1f} MB in "
        f"{written.files} file{'s' if written.files > 1 else ''}, "
        f"{written.size / _MB / max(seconds, 1e-3):.0f} MB/s"
    )
    return written


def check_dtype(dtype: str | None) -> None:
    """InputError for a dtype that cannot be written."""
    if dtype not in (None, *DTYPES):
        raise InputError(f"--dtype {dtype} cannot be written; choose {' or '.join(DTYPES)}")


def check_target(target: Path, source: Path) -> None:
    """InputError where the target is the source."""
    if target.resolve() == source.resolve():
        raise InputError(f"--to {target} is the source itself; choose another directory")


def parse_size(text: str) -> int:
    """Bytes of "5GB", "500 MB" or "1000"; InputError for anything else and for 0."""
    number = text.strip().upper().rstrip("BKMGT").strip()
    unit = text.strip().upper()[len(number) :].strip()
    try:
        size = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        size = 0
    if size < 1:
        raise InputError(f"--shard-size {text!r} is not a size; write 5GB or 500MB")
    return size
