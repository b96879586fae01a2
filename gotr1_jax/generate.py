"""Pictures from captions, each with its plan: `gotr1 generate`."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gotr1_jax.data.sources import read_captions
from gotr1_jax.errors import InputError
from gotr1_jax.plan import draw_overlay, parse_plan
from gotr1_jax.text import GOTR1_TEMPLATE, TextTokenizer, format_prompt

if TYPE_CHECKING:
    from gotr1_jax.convert.checkpoint import Checkpoint

MAX_ROWS = 32
"""Samples drawn at once."""

# Pixels decoded at once: four of Janus-Pro's pictures, about 1.5 GB of activations in VQ-16.
_DECODED_PIXELS = 4 * 384 * 384
_PROMPT_MULTIPLE = 16  # prompts are padded to a multiple of this; every length compiles anew
_RESULT = "result.json"
_FILES = ("image_*.png", "plan_*.txt", "overlay_*.png")


@dataclass(frozen=True)
class GenerateConfig:
    """What to generate and where to.

    Attributes:
      captions: one or more.
      out: directory of the files; with `numbered` each caption gets a folder 00000, ... in it.
      numbered: whether the captions came from a file.
      ckpt: a checkpoint directory or that of a finished run; None is the embedded checkpoint.
      n: samples of each caption.
      greedy: the most likely token everywhere.
      cfg: guidance weight of the picture, 1 is none.
      max_plan_tokens: longest plan; a longer one is cut.
      dtype: "float32", "bfloat16", or None: bfloat16 on accelerators, float32 on a CPU.
      seed: of all randomness.
      template: prompt text around the caption.
    """

    captions: tuple[str, ...]
    out: Path
    numbered: bool = False
    ckpt: Path | None = None
    n: int = 1
    greedy: bool = False
    cfg: float = 5.0
    max_plan_tokens: int = 600
    dtype: str | None = None
    seed: int = 0
    template: str = GOTR1_TEMPLATE

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("max_plan_tokens", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; give {least} or more")
        if not math.isfinite(self.cfg):
            raise InputError(f"cfg is {self.cfg}; give a finite guidance weight")
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}; give less than 2**32")
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"output {self.out} is a file; choose a directory")
        there = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        if not os.access(there, os.W_OK | os.X_OK):
            raise InputError(f"output {self.out} cannot be written; choose another directory")


@dataclass(frozen=True)
class Sample:
    """One plan with its picture: token ids (BOI last), picture ids, uint8 (H, W, 3)."""

    plan_ids: list[int]
    image_ids: list[int]
    pixels: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `gotr1 generate`."""
    parser.add_argument(
        "--ckpt", type=Path, metavar="DIR", help="checkpoint or finished run (the embedded one)"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="one caption; its files go into --out")
    what.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help="captions, one a line, or .jsonl with the key prompt; each gets a numbered folder",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    parser.add_argument("--n", type=int, default=1, help="samples of each caption (1)")
    parser.add_argument("--greedy", action="store_true", help="take the most likely token always")
    parser.add_argument("--cfg", type=float, default=5.0, metavar="W", help="guidance weight (5)")
    parser.add_argument(
        "--max-plan-tokens", type=int, default=600, metavar="T", help="longest plan (600)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"),
        help="of weights and activations; default: bfloat16, on a CPU float32",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (0)")
    parser.add_argument(
        "--json", action="store_true",
        help="print result.json to standard output, for --prompts one line a caption",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Does what the parsed command line says."""
    captions = (args.prompt,) if args.prompts is None else read_captions(args.prompts)
    config = GenerateConfig(
        captions=tuple(captions),
        out=args.out,
        numbered=args.prompts is not None,
        ckpt=args.ckpt,
        n=args.n,
        greedy=args.greedy,
        cfg=args.cfg,
        max_plan_tokens=args.max_plan_tokens,
        dtype=args.dtype,
        seed=args.seed,
    )
    show: Callable[[dict[str, Any]], None] | None = None
    if args.json:
        indent = None if config.numbered else 2

        def show(result: dict[str, Any]) -> None:
            print(json.dumps(result, ensure_ascii=False, indent=indent), flush=True)

    generate(config, show)


def generate(
    config: GenerateConfig, show: Callable[[dict[str, Any]], None] | None = None
) -> list[Path]:
    """Draws `config.n` samples of every caption; returns the folder of each caption's files.

    All captions are checked before anything is drawn. A folder holds image_00.png, plan_00.txt,
    overlay_00.png for each sample, and result.json, written last. `show` gets the content of
    each result.json as it is finished. Draws depend on (seed, caption's place, sample) alone,
    not on how captions are batched.

    Raises InputError for bad input, RunError if a file cannot be written.
    """
    for place, caption in enumerate(config.captions):
        try:
            format_prompt(caption, config.template)
        except InputError as error:
            raise InputError(_at(config, place, error)) from error
    # Imported late: a wrong caption is answered without waiting for jax.
    from gotr1_jax.convert.checkpoint import find_checkpoint
    from gotr1_jax.training.metrics import Progress

    painter = Painter(config, find_checkpoint(config.ckpt))
    prompts = painter.encode(config)
    folders: list[Path] = []
    samples: list[Sample] = []
    total = len(prompts) * config.n
    with Progress("pictures", total) as progress:
        for done, sample in enumerate(painter.draw(prompts), start=1):
            samples.append(sample)
            if len(samples) == config.n:
                place = len(folders)
                folder = config.out / f"{place:05d}" if config.numbered else config.out
                caption = config.captions[place]
                result = describe(painter.tokenizer, caption, config.template, prompts[place], samples)  # fmt: skip  # noqa: E501
                write_result(folder, result, samples)
                if show is not None:
                    show(result)
                folders.append(folder)
                samples = []
            progress.update(done)
    return folders


class Painter:
    """A loaded checkpoint with its compiled sampler and decoder."""

    def __init__(self, config: GenerateConfig, source: Path) -> None:
        import jax
        import jax.numpy as jnp

        from gotr1_jax.convert.checkpoint import load_checkpoint

        name = config.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        self._config = config
        self._checkpoint: Checkpoint = load_checkpoint(
            source, parts=("policy",), dtype=jnp.dtype(name)
        )
        # The picture decoder is small and stays float32: bfloat16 would be seen in the picture.
        self._pictures = load_checkpoint(source, parts=("vq",))
        self.tokenizer = self._checkpoint.tokenizer

    def encode(self, config: GenerateConfig) -> list[list[int]]:
        """Prompt ids of every caption; InputError names the caption that does not fit."""
        prompts = []
        for place, caption in enumerate(config.captions):
            try:
                prompts.append(self.tokenizer.encode_prompt(caption, config.template))
            except InputError as error:
                raise InputError(_at(config, place, error)) from error
        return prompts

    def draw(self, prompts: Sequence[list[int]]) -> Iterator[Sample]:
        """All samples of the first caption, then of the next; rows are drawn in equal batches."""
        import jax
        from flax import nnx

        from gotr1_jax.models.janus import abstract_policy
        from gotr1_jax.sampling.sampler import Sampler, SamplerConfig

        config, checkpoint = self._config, self._checkpoint
        abstract = abstract_policy(
            checkpoint.config, dtype=checkpoint.dtype, param_dtype=checkpoint.dtype
        )
        sampler = Sampler(
            nnx.split(abstract)[0],
            checkpoint.config,
            self.tokenizer.specials,
            SamplerConfig(
                max_plan_tokens=config.max_plan_tokens, guidance=config.cfg, greedy=config.greedy
            ),
        )
        params = sampler.prepare(checkpoint.policy)
        decode = self._decoder()
        for places, first, count in batches(len(prompts), config.n):
            batch = _prompt_batch([prompts[p] for p in places], max(map(len, prompts)))
            keys = _keys(config.seed, places, first, count)
            rows = sampler(params, batch, keys, count).rows
            rows = jax.tree.map(np.asarray, rows)
            wanted = len(set(places)) * count  # without what fills the batch up
            pixels = decode(rows.image_ids_BU[:wanted])
            for row in range(wanted):
                length = int(rows.plan_len_B[row])
                yield Sample(
                    rows.plan_ids_BT[row, :length].tolist(),
                    rows.image_ids_BU[row].tolist(),
                    pixels[row],
                )

    def _decoder(self) -> Callable[[np.ndarray], np.ndarray]:
        """Picture ids (B, U) -> uint8 (B, H, W, 3), a few pictures at once to bound the memory."""
        import jax
        from flax import nnx

        graphdef, state = nnx.split(self._pictures.vq_module())
        grid = self._checkpoint.config.grid

        @jax.jit
        def decode(state: Any, ids: jax.Array) -> jax.Array:
            return nnx.merge(graphdef, state).decode_ids(ids, grid)

        def chunked(ids_BU: np.ndarray) -> np.ndarray:
            chunk = max(1, _DECODED_PIXELS // self._checkpoint.config.image_size**2)
            chunk = min(chunk, len(ids_BU))
            out = []
            for start in range(0, len(ids_BU), chunk):
                part = ids_BU[start : start + chunk]
                padded = np.concatenate([part, np.repeat(part[:1], chunk - len(part), axis=0)])
                out.append(to_uint8(np.asarray(decode(state, padded)))[: len(part)])
            return np.concatenate(out)

        return chunked


def batches(captions: int, n: int) -> Iterator[tuple[list[int], int, int]]:
    """Work in batches of at most MAX_ROWS rows: (captions' places, first sample, samples).

    Every batch but those of a caption with more than MAX_ROWS samples has the same size, so that
    one program serves all: the last is filled up by repeating its last caption.
    """
    if n > MAX_ROWS:
        for place in range(captions):
            for first in range(0, n, MAX_ROWS):
                yield [place], first, min(MAX_ROWS, n - first)
        return
    size = min(captions, MAX_ROWS // n)
    for start in range(0, captions, size):
        places = list(range(start, min(start + size, captions)))
        yield places + places[-1:] * (size - len(places)), 0, n


def _prompt_batch(prompts: Sequence[list[int]], longest: int) -> Any:
    import jax.numpy as jnp

    from gotr1_jax.sampling.rows import PromptBatch

    size = -(-longest // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
    ids = np.zeros((len(prompts), size), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    lengths = [len(prompt) for prompt in prompts]
    return PromptBatch(jnp.asarray(ids), jnp.asarray(lengths, jnp.int32))


def _keys(seed: int, places: Sequence[int], first: int, count: int) -> Any:
    """Keys of samples first .. first + count - 1 of the captions at `places`, caption-major."""
    import jax.numpy as jnp

    from gotr1_jax.sampling.sampler import row_keys

    keys = row_keys(seed, 0, jnp.asarray(places), first + count)
    return keys.reshape(len(places), first + count)[:, first:].reshape(-1)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Decoded pixels, about [-1, 1] -> uint8; cut off, not rounded, as the reference does."""
    return np.clip((pixels.astype(np.float32) + 1) / 2 * 255, 0, 255).astype(np.uint8)


def describe(
    tokenizer: TextTokenizer,
    caption: str,
    template: str,
    prompt_ids: Sequence[int],
    samples: Sequence[Sample],
) -> dict[str, Any]:
    """The content of result.json; boxes are [x1, y1, x2, y2] as written, in 0..999 of width and
    height, or null where the plan gives an object none that can be read."""
    return {
        "prompt": caption,
        "sft_prompt": format_prompt(caption, template),
        "prompt_ids": list(prompt_ids),
        "samples": [
            _describe_sample(tokenizer.decode(s.plan_ids, keep_special=True), i, s)
            for i, s in enumerate(samples)
        ],
    }


def _describe_sample(plan_text: str, index: int, sample: Sample) -> dict[str, Any]:
    return {
        "plan_ids": sample.plan_ids,
        "plan_text": plan_text,
        "objects": [
            {
                "name": o.name,
                "box": None if o.box is None else [o.box.x1, o.box.y1, o.box.x2, o.box.y2],
            }
            for o in parse_plan(plan_text).objects
        ],
        "image_ids": sample.image_ids,
        "image": f"image_{index:02d}.png",
    }


def write_result(folder: Path, result: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Writes one caption's files into `folder`, which is made; those of an earlier run go.

    Everything is written beside first and then moved, result.json last: a folder that has one is
    complete. RunError if it cannot be written; nothing of the new files is then left.
    """
    temporary = folder / ".unfinished"
    made = not folder.exists()
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for index, (sample, entry) in enumerate(zip(samples, result["samples"])):
            image = Image.fromarray(sample.pixels)
            image.save(temporary / entry["image"])
            boxes = parse_plan(entry["plan_text"]).boxes
            draw_overlay(image, boxes).save(temporary / f"overlay_{index:02d}.png")
            plan = temporary / f"plan_{index:02d}.txt"
            plan.write_bytes(entry["plan_text"].encode("utf-8"))
        text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
        (temporary / _RESULT).write_bytes(text.encode("utf-8"))
        (folder / _RESULT).unlink(missing_ok=True)
        for pattern in _FILES:
            for old in folder.glob(pattern):
                old.unlink()
        for file in sorted(temporary.iterdir(), key=lambda f: f.name == _RESULT):
            file.rename(folder / file.name)
    except OSError as error:
        from gotr1_jax.training.run_dir import write_failure

        raise write_failure(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if made and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _at(config: GenerateConfig, place: int, error: InputError) -> str:
    return f"caption {place + 1} of the file: {error}" if config.numbered else str(error)
