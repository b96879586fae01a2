"""The image tokenizer of the shapes world: `gotr1 train vq --config FILE`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gotr1_jax.convert.image_tokenizer import save_vq
from gotr1_jax.images import encode_png
from gotr1_jax.io.files import atomic_write
from gotr1_jax.io.storage import local_path
from gotr1_jax.parallel.mesh import addressable_rows, replicated
from gotr1_jax.parallel.placement import put_addressable_rows
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    gather,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.report.page import write_report
from gotr1_jax.shapes.cells import CELL_CODES_FILE, CellCodes
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.run_dir import RunDir
from gotr1_jax.trainer.tracking.trackers import TrackedImage
from gotr1_jax.vq.config import VqTrainConfig
from gotr1_jax.vq.data import (
    SceneImages,
    batch_of_codes,
    batch_of_step,
    batch_rows,
    code_cells,
    draw_scenes,
)
from gotr1_jax.vq.evaluation import contact_sheet, evaluate
from gotr1_jax.vq.update import init_state, make_step


def train_vq(config: VqTrainConfig) -> Path:
    """Run the job; returns the folder of the finished tokenizer in the released format."""
    row_counts = {"batch_size": config.batch_size, "crop.batch_size": config.crop.batch_size}
    bad_updates = config.log_every + 1
    with Run("vq", config, row_counts=row_counts, max_bad_updates=bad_updates) as run:
        run.open()
        # The tokenizer is replicated: it is small compared with its activations.
        data, codes = _load_data(config)
        # Signs of components are free: every process takes those of the first one.
        embedding = None if codes is None else gather(codes.embedding(config.model.code_dim))[0]
        new_state = jax.jit(partial(init_state, config), out_shardings=replicated(run.mesh))
        state = run.restore(new_state(embedding))
        update = make_step(config)
        for step in run.steps():
            count = batch_rows(config, step)
            rows = addressable_rows(count, run.mesh)
            if codes is None:
                images, true = batch_of_step(data, config, step, rows), None
            else:
                images, true = batch_of_codes(data, config, step, rows)
            batch = put_addressable_rows((images, true), count, run.mesh)
            state, result = update(state, *batch)
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in asdict(result).items()}
                shown = {name: values[name] for name in ("psnr", "perplexity", "used_frac")}
                run.log(values, state.skipped_in_a_row, **shown)
            run.end_step(state)
        with raise_on_all_processes():
            if is_main_process():
                _finish(config, run, jax.device_get(state.params), codes)
        return _export_dir(config, run.dir)


def _load_data(config: VqTrainConfig) -> tuple[SceneImages, CellCodes | None]:
    """The training images, and with codes of cells these codes."""
    if config.cells is None:
        return draw_scenes("train", config.seed, config.images, config.paired), None
    weight = config.cells.depth_weight
    data = draw_scenes("train", config.seed, config.images, variants=False, depth_weight=weight)
    with raise_on_all_processes():
        data, codes = code_cells(data, config.cells, config.model, config.seed)
    check_same_on_all_processes(codes.digest, "set of codes of cells")
    print(f"{len(codes.centres) + 1} codes of cells")
    return data, codes


def _export_dir(config: VqTrainConfig, run: RunDir) -> Path:
    return local_path(config.export_dir) if config.export_dir is not None else run.root / "model"


def _finish(config: VqTrainConfig, run: Run, params: Any, codes: CellCodes | None) -> None:
    """Export the tokenizer and evaluate it on held-out images."""
    out = _export_dir(config, run.dir)
    save_vq(out, config.model, IMAGE_SIZE, params, config.export_dtype)
    if codes is not None:
        codes.save(out / CELL_CODES_FILE)
    rounded = jax.tree.map(lambda x: x.astype(config.export_dtype).astype(np.float32), params)
    lost = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), rounded, params)
    note = f"rounded to {config.export_dtype}, largest difference {max(jax.tree.leaves(lost)):.3g}"
    note = "in float32, not rounded" if config.export_dtype == "float32" else note
    print(f"{out}: trained weights {note}")
    held_out = draw_scenes("heldout", config.seed, config.eval_images, variants=True)
    margin = config.weights.consistency_margin
    summary, decoded = evaluate(config.model, rounded, held_out, margin)
    sheet = np.asarray(contact_sheet(held_out.images[:, 0], decoded))
    atomic_write(run.dir.reconstructions, encode_png(sheet))
    shown = TrackedImage("reconstructions", "held-out images, below each row decoded", sheet)
    run.write_summary(summary, [shown])
    print(f"report: {write_report(run.dir.root)}")
