"""Samples of a few captions during supervised training, to look at."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.image_tokenizer import ImageTokenizer
from gotr1_jax.data.captions import read_captions
from gotr1_jax.data.pipeline import pad_rows
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.vq import abstract_vq
from gotr1_jax.parallel.mesh import fetch_any_rows, local_mesh
from gotr1_jax.parallel.phases import phase
from gotr1_jax.parallel.placement import check_rows
from gotr1_jax.parallel.processes import is_main_process, raise_on_all_processes
from gotr1_jax.plan import parse_plan
from gotr1_jax.sampler.config import SamplerConfig
from gotr1_jax.sampler.image_decoder import ImageDecoder
from gotr1_jax.sampler.sampler import Sampler, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.shapes.dataset import shapes_captions
from gotr1_jax.tokenizers.janus import TextTokenizer
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.samples import SampleRecord, write_samples


class SampledCaptions:
    """Draws one sample of each caption with the weights of a step, and writes them for the report.

    The same captions and random numbers at every step. Every process makes the same calls.
    """

    def __init__(
        self, config: SftConfig, sizes: JanusConfig, tokenizer: TextTokenizer, mesh: Mesh
    ) -> None:
        """Reads and encodes the captions; nothing where samples.every is 0.

        InputError where too few can be used, or their number does not fit the mesh.
        """
        limit, chosen = config.data.max_prompt_tokens, config.samples
        self._every, self._seed, self._tokenizer = chosen.every, config.seed, tokenizer
        if not self._every:
            return
        check_rows(chosen.captions, mesh, "samples.captions")

        def encode(caption: str) -> list[int]:
            return list(tokenizer.encode_prompt(caption, config.prompt_template, limit))

        self._captions = (
            shapes_captions("heldout", chosen.captions)
            if chosen.source == "shapes"
            else read_captions(chosen.source, "", chosen.captions, check=encode)
        )
        rows = [encode(caption) for caption in self._captions]
        ids_PC, len_P = pad_rows(rows, max(map(len, rows)), tokenizer.specials.pad)
        self._prompts = PromptBatch(jnp.asarray(ids_PC), jnp.asarray(len_P))
        self._settings, self._sizes, self._mesh = SamplerConfig.of(config.wanted), sizes, mesh

    def use(self, graphdef: Any, vq: ImageTokenizer) -> None:
        """Compiles for the policy that is trained, split, and the image tokenizer."""
        if not self._every:
            return
        specials = self._tokenizer.specials
        self._sampler = Sampler(graphdef, self._sizes, specials, self._settings, self._mesh)
        module = nnx.merge(nnx.split(abstract_vq(vq.config))[0], vq.state)
        batch, grid = len(self._captions), self._sizes.grid
        self._decode = ImageDecoder(module, grid, batch, local_mesh(self._mesh))

    def write_if_due(self, run: Run, params: Any, last: int) -> None:
        """Samples of the run's current step, if it is one of those, the first or the last."""
        if not self._every or (run.step % self._every and run.step not in (1, last)):
            return
        count = len(self._captions)
        with phase("samples", count):
            keys_B = row_keys(self._seed, 0, jnp.arange(count), 1)
            drawn = self._sampler(self._sampler.prepare(params), self._prompts, keys_B, 1)
            rows, every = drawn.rows, np.arange(count)
            columns = (rows.plan_ids_BT, rows.plan_len_B, rows.image_ids_BU)
            ids_BT, len_B, image_ids_BU = (fetch_any_rows(column, every) for column in columns)
            with raise_on_all_processes():
                if is_main_process():
                    records = self._records(ids_BT, len_B, self._decode(image_ids_BU))
                    write_samples(run.dir.samples, run.step, records)
                    run.show_samples(records)

    def _records(
        self, ids_BT: np.ndarray, len_B: np.ndarray, images: list[np.ndarray]
    ) -> list[SampleRecord]:
        records = []
        for i, (caption, image) in enumerate(zip(self._captions, images)):
            plan = parse_plan(self._tokenizer.decode(ids_BT[i, : len_B[i] - 1].tolist()))
            records.append(
                SampleRecord(
                    caption=caption, caption_index=i, plan_text=plan.text,
                    planned=tuple(plan.boxes), detections=(), scores={}, total=math.nan,
                    image=image,
                )
            )  # fmt: skip
        return records
