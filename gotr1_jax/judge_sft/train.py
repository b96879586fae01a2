"""Supervised training of a judge: `gotr1 train judge --config FILE`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optax

from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.qwen_json import MODEL_TYPES
from gotr1_jax.convert.qwen_vl import save_qwen
from gotr1_jax.convert.reader import model_type_of
from gotr1_jax.io.digests import model_digest
from gotr1_jax.io.reading import read_text
from gotr1_jax.io.storage import local_path
from gotr1_jax.judge_sft.config import JudgeSftConfig
from gotr1_jax.judge_sft.dataset import describe_data, fit_source, make_judge_batches
from gotr1_jax.judge_sft.detector import make_detector_step
from gotr1_jax.judge_sft.model import (
    InitialJudge,
    SplitJudge,
    finished_params,
    initial_state,
    judge_shapes,
    prepare_judge,
)
from gotr1_jax.judge_sft.update import JudgeStep, make_judge_step
from gotr1_jax.parallel.mesh import addressable_rows
from gotr1_jax.parallel.placement import gather_to_main, put_addressable_rows
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.report.page import write_report
from gotr1_jax.trainer.optimizer import make_optimizer, make_schedule
from gotr1_jax.trainer.run import Run

# Metrics on the line of a step, those of each objective.
_SHOWN = ("nats/answer", "right/answers", "thousandths/box", "right/shape")
TOKENIZER_FILE = "tokenizer.json"


def train_judge(config: JudgeSftConfig) -> Path:
    """Run the job; returns the folder of the finished model in the released format."""
    row_counts, bad_updates = {"micro_batch": config.micro_batch}, config.log_every + 1
    with (
        # A new tokenizer is written here first, so that an error leaves no run directory.
        TemporaryDirectory(prefix="gotr1_tokenizer_") as scratch,
        Run("judge", config, row_counts=row_counts, max_bad_updates=bad_updates) as run,
    ):
        mesh = run.mesh
        with raise_on_all_processes():
            initial, source = prepare_judge(config, Path(scratch))
            images = initial.preprocessing
            source, shape = fit_source(config.data, source, initial.tokenizer, images)
            shapes = judge_shapes(config, initial.config, mesh)
        tokenizer = read_text(initial.files / TOKENIZER_FILE)
        check_same_on_all_processes(tokenizer, "tokenizer")
        check_same_on_all_processes(f"{len(source)} {shape}", "set of examples")
        inputs = _inputs(config, tokenizer)
        data_key = " ".join(v for k, v in inputs.items() if k.startswith("data."))
        run.check_inputs(inputs, f"{data_key} {config.batch_size}")
        own_rows = addressable_rows(config.batch_size, mesh)
        data = make_judge_batches(config, source, shape, initial.tokenizer, images, own_rows)
        run.open()
        batches = iter(data)
        optimizer = make_optimizer(config.optimizer, config.steps)
        state, frozen = initial_state(config, initial, shapes, optimizer, mesh)
        state = run.restore(state, batches)
        update = _make_step(config, shapes, optimizer, shape.answer_tokens)
        schedule = make_schedule(config.optimizer, config.steps)
        for step in run.steps():
            with raise_on_all_processes():
                batch = next(batches)
            rows = put_addressable_rows(batch, config.batch_size, mesh)
            state, result = update(state, frozen, rows)
            if step % config.log_every == 0 or step == config.steps:
                values = {name: float(value) for name, value in result.items()}
                values["lr"] = float(schedule(state.updates - 1))
                values["updates/skipped"] = int(state.skipped)
                shown = {n.split("/")[0]: values[n] for n in _SHOWN if n in values}
                run.log(values, state.skipped_in_a_row, **shown)
            run.end_step(state)
        params = gather_to_main(finished_params(config, shapes, state, frozen))
        with raise_on_all_processes():
            out = _export(config, run.dir.root, initial, params)
            if is_main_process():
                run.write_summary()
                print(f"report: {write_report(run.dir.root)}")
            return out


def _make_step(
    config: JudgeSftConfig,
    shapes: SplitJudge,
    optimizer: optax.GradientTransformation,
    answer_tokens: int,
) -> JudgeStep:
    """The update of the job's objective."""
    if config.objective == "objects":
        return make_detector_step(shapes.graphdef, optimizer, config.micro_batch)
    return make_judge_step(
        shapes.graphdef, optimizer, answer_tokens, config.mean_over, config.micro_batch
    )


def _inputs(config: JudgeSftConfig, tokenizer: str) -> dict[str, str]:
    """What identifies the content of the files that the job reads, by setting."""
    with raise_on_all_processes():
        inputs = describe_data(config.data)
        if config.init is None:
            inputs["model"] = f"tokenizer {hashlib.sha256(tokenizer.encode()).hexdigest()[:16]}"
        elif is_main_process():  # which alone compares them
            inputs["init"] = f"weights {model_digest(find_checkpoint(config.init))}"
        return inputs


def _export(config: JudgeSftConfig, root: Path, initial: InitialJudge, params: Any) -> Path:
    """Writes the finished model with the files that it was trained with."""
    out = local_path(config.export_dir) if config.export_dir is not None else root / "model"
    if is_main_process():
        save_qwen(
            out, initial.config, params, initial.files, config.export_dtype, config.taught_canvas
        )
        print(f"{out}: a {MODEL_TYPES[model_type_of(out)]} in {config.export_dtype}")
    return out
