"""Supervised training of plan and image: `gotr1 train sft --config FILE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.convert.checkpoint import COPIED_FILES, Checkpoint, load_checkpoint, save_checkpoint
from gotr1_jax.convert.find import find_checkpoint
from gotr1_jax.convert.image_tokenizer import ImageTokenizer, load_vq
from gotr1_jax.convert.open_checkpoint import check_vocabulary, read_sizes
from gotr1_jax.convert.writer import copy_files
from gotr1_jax.errors import InputError
from gotr1_jax.io.digests import identify_weights
from gotr1_jax.io.reading import read_text
from gotr1_jax.io.storage import local_path
from gotr1_jax.models.config import JanusConfig
from gotr1_jax.models.janus import JanusPolicy, abstract_policy
from gotr1_jax.models.siglip import JanusUnderstanding
from gotr1_jax.parallel.mesh import addressable_rows
from gotr1_jax.parallel.placement import gather_to_main
from gotr1_jax.parallel.processes import (
    check_same_on_all_processes,
    is_main_process,
    raise_on_all_processes,
)
from gotr1_jax.parallel.sharding import state_shardings
from gotr1_jax.report.page import write_report
from gotr1_jax.sampler.config import sampling_defaults
from gotr1_jax.sft.config import SftConfig
from gotr1_jax.sft.dataset import describe_data, make_batches, to_token_batch
from gotr1_jax.sft.losses import SftWeights
from gotr1_jax.sft.samples import SampledCaptions
from gotr1_jax.sft.update import make_sft_step
from gotr1_jax.shapes.tokenizer import train_tokenizer
from gotr1_jax.tokenizers.janus import TOKENIZER_FILE, TextTokenizer, add_plan_tokens
from gotr1_jax.trainer.generation import resolve_run_sampling
from gotr1_jax.trainer.number_features import with_number_features
from gotr1_jax.trainer.optimizer import make_optimizer, make_schedule
from gotr1_jax.trainer.run import Run
from gotr1_jax.trainer.state import TrainState, create_state


@dataclass(frozen=True)
class InitialModel:
    """The model before training: sizes, tokenizer and its folder, frozen states, policy."""

    config: JanusConfig
    tokenizer: TextTokenizer
    tokenizer_dir: Path
    vq: nnx.State
    understanding: nnx.State
    policy: nnx.State | None  # None: randomly initialised


def train_sft(config: SftConfig) -> Path:
    """Run the job; returns the folder of the finished model in the released format."""
    source = None if config.init is None else find_checkpoint(config.init)
    config = resolve_run_sampling(config, source, sampling_defaults("template"))
    row_counts, bad_updates = {"micro_batch": config.micro_batch}, config.log_every + 1
    with (
        # A new tokenizer is written here first, so that an error leaves no run directory.
        TemporaryDirectory(prefix="gotr1_tokenizer_") as scratch,
        Run("sft", config, row_counts=row_counts, max_bad_updates=bad_updates) as run,
    ):
        mesh = run.mesh
        with raise_on_all_processes():
            images = load_vq(find_checkpoint(config.vq))
            loaded = None if config.init is None else _load(config, mesh)
        loaded = None if loaded is None else loaded.exchanged()
        with raise_on_all_processes():
            initial = _initial_model(config, Path(scratch), images, loaded)
            sampled = SampledCaptions(config, initial.config, initial.tokenizer, mesh)
        check_same_on_all_processes(read_text(initial.tokenizer_dir / TOKENIZER_FILE), "tokenizer")
        inputs = _inputs(config)
        run.check_inputs(inputs, f"{inputs['data.source']} {config.batch_size}")
        run.open()
        vq = ImageTokenizer(initial.config.vq, initial.config.image_size, initial.vq)
        own_rows = addressable_rows(config.batch_size, mesh)
        data = make_batches(config, vq, initial.tokenizer, initial.tokenizer_dir, own_rows)
        batches = iter(data)
        policy = abstract_policy(initial.config, dtype=jnp.dtype(config.dtype), remat=config.remat)
        graphdef, shapes = nnx.split(policy)
        optimizer = make_optimizer(config.optimizer, config.steps)
        state = run.restore(_initial_state(config, initial, shapes, optimizer, mesh), batches)
        weights = SftWeights(config.text_weight, config.image_weight, config.boi_weight)
        sampled.use(graphdef, vq)
        update = make_sft_step(
            graphdef, optimizer, initial.tokenizer.specials, weights, config.caption_dropout,
            config.micro_batch, config.length_buckets,
        )  # fmt: skip
        schedule = make_schedule(config.optimizer, config.steps)
        key = jax.random.key(config.seed)
        for step in run.steps():
            with raise_on_all_processes():
                batch = next(batches)
            rows = to_token_batch(batch, config.batch_size, mesh)
            state, result = update(state, rows, jax.random.fold_in(key, step))
            if step % config.log_every == 0 or step == config.steps:
                values = _metrics(result, state, schedule)
                shown = {name: values[f"nats/{name}"] for name in ("text", "image")}
                run.log(values, state.skipped_in_a_row, **shown)
            sampled.write_if_due(run, state.params, config.steps)
            if config.export_every and step % config.export_every == 0 and step < config.steps:
                _export(config, run.dir.root / f"model_{step:06d}", initial, state.params)
            run.end_step(state)
        out = run.dir.root / "model" if config.export_dir is None else local_path(config.export_dir)
        _export(config, out, initial, state.params)
        with raise_on_all_processes():
            if is_main_process():
                run.write_summary()
                print(f"report: {write_report(run.dir.root)}")
        return out


def _metrics(result: Any, state: TrainState, schedule: Any) -> dict[str, float]:
    """The metrics of a step, from what its update returns."""
    return {
        "loss": float(result.loss),
        "nats/text": float(result.nats.text),
        "nats/image": float(result.nats.image),
        "nats/boi": float(result.nats.boi),
        "grad_norm": float(result.grad_norm),
        "lr": float(schedule(state.updates - 1)),
        "updates/skipped": int(state.skipped),
    }


def _inputs(config: SftConfig) -> dict[str, str]:
    """What identifies the content of the files that the job reads, by setting."""
    with raise_on_all_processes():
        inputs = {"data.source": describe_data(config.data)}
        if is_main_process():  # which alone compares them
            for name, path in (("vq", config.vq), ("init", config.init)):
                if path is not None:
                    inputs |= identify_weights(name, find_checkpoint(path))
        return inputs


def _load(config: SftConfig, mesh: Mesh) -> Checkpoint:
    """The checkpoint to start from; each process reads a share of the policy."""
    assert config.init is not None
    path = find_checkpoint(config.init)
    abstract = nnx.split(abstract_policy(read_sizes(path)))[1]
    placed = {"policy": state_shardings(abstract, mesh)}
    return load_checkpoint(path, parts=("policy", "understanding"), shardings=placed)


def _initial_model(
    config: SftConfig, tokenizer_dir: Path, images: ImageTokenizer, loaded: Checkpoint | None
) -> InitialModel:
    """The initial model; a new or extended tokenizer is written to `tokenizer_dir`."""
    if loaded is not None:
        if loaded.config.vq != images.config:
            raise InputError(
                f"the image tokenizers of init {config.init} and of vq {config.vq} differ in size"
            )
        tokenizer, source = loaded.tokenizer, loaded.source
        if config.add_plan_tokens and not tokenizer.marks_plans:
            tokenizer, source = _with_plan_tokens(loaded, tokenizer_dir), tokenizer_dir
        return InitialModel(
            loaded.config, tokenizer, source, images.state, loaded.understanding, loaded.policy
        )
    assert config.model is not None
    sizes = JanusConfig(config.model.decoder, images.config, config.model.siglip, images.image_size)
    siglip = sizes.siglip
    train_tokenizer(tokenizer_dir, image_size=siglip.image_size, num_image_tokens=siglip.num_tokens)
    tokenizer = TextTokenizer.from_dir(tokenizer_dir)
    if tokenizer.vocab_size > sizes.decoder.vocab_size:
        raise InputError(
            f"model.decoder.vocab_size is {sizes.decoder.vocab_size}, the tokenizer has "
            f"{tokenizer.vocab_size} tokens; use at least that many"
        )
    understanding = nnx.split(JanusUnderstanding(sizes, rngs=nnx.Rngs(config.seed)))[1]
    return InitialModel(sizes, tokenizer, tokenizer_dir, images.state, understanding, None)


def _with_plan_tokens(loaded: Checkpoint, folder: Path) -> TextTokenizer:
    """Add the control tokens of plans to a checkpoint's tokenizer; writes it to `folder`."""
    copy_files(loaded.source, COPIED_FILES, folder)
    file = folder / TOKENIZER_FILE
    file.write_text(add_plan_tokens(read_text(file)), encoding="utf-8")
    tokenizer = TextTokenizer.from_dir(folder)
    check_vocabulary(tokenizer.vocab_size, loaded.config.decoder.vocab_size, folder)
    return tokenizer


def _initial_state(
    config: SftConfig, initial: InitialModel, abstract: nnx.State, optimizer: Any, mesh: Any
) -> TrainState:
    """The sharded state before the first update; without a checkpoint parameters are random."""
    if initial.policy is not None:
        return create_state(lambda policy: policy, initial.policy, abstract, optimizer, mesh)

    def init(key: jax.Array) -> nnx.State:
        policy = JanusPolicy(initial.config, rngs=nnx.Rngs(params=key))
        if config.model is not None and config.model.number_features:
            table, numbers = policy.decoder.embed.table, initial.tokenizer.number_ids
            table[...] = with_number_features(table[...], numbers, jax.random.fold_in(key, 1))
        return nnx.split(policy)[1]

    return create_state(init, jax.random.key(config.seed), abstract, optimizer, mesh)


def _export(config: SftConfig, out: Path, initial: InitialModel, params: Any) -> None:
    """Writes the model with these parameters of the policy, which may be sharded."""
    policy = gather_to_main(params)
    with raise_on_all_processes():
        if is_main_process():
            save_checkpoint(
                out, initial.config, policy, initial.vq, initial.understanding,
                initial.tokenizer_dir,
                dtype="float32",  # of training
                generation=config.wanted,
            )  # fmt: skip
            print(f"{out}: trained weights in float32, not rounded")
