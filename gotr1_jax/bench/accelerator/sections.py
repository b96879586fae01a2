"""The sections in the order of their worth, what each needs, and what runs it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from gotr1_jax.aot.chips import Chip
from gotr1_jax.bench.accelerator.clocks import CompileClock
from gotr1_jax.bench.accelerator.costs import image_cost, plan_cost, slot_bytes, tree_bytes
from gotr1_jax.bench.accelerator.judge import JudgeRun, measure_decoder
from gotr1_jax.bench.accelerator.policy import PolicyRun
from gotr1_jax.bench.accelerator.sizes import (
    JudgeToMeasure,
    PolicyToMeasure,
    released_judge,
    released_policy,
    tiny_judge,
    tiny_policy,
)
from gotr1_jax.bench.accelerator.step import StepRun
from gotr1_jax.bench.reference import SPECIALS
from gotr1_jax.convert.qwen_vl import abstract_state
from gotr1_jax.errors import InputError
from gotr1_jax.grpo.policy import policy_shapes
from gotr1_jax.grpo.setup import make_sampler
from gotr1_jax.models.config import DecoderConfig
from gotr1_jax.models.vq import abstract_vq

SIZES = ("released", "tiny")
_USED_SHARE = 0.4  # of the peak numbers, for estimates of time
_UNKNOWN_CHIP = Chip("cpu", 0, 5e9, 5e9)  # and for those of a chip without peak numbers


@dataclass(frozen=True)
class Section:
    """One measurement.

    Attributes:
      name: in the record.
      group: of sections that share what is in memory.
      bytes: that must be on the device at once, at least: weights and caches.
      programs: that it compiles, about.
      seconds: of one repetition at 40 % of the peak numbers, about.
      compile_seconds: of one program, a first guess.
      run: the measurement: f(what the group shares, repetitions) -> numbers.
    """

    name: str
    group: str
    bytes: int
    programs: int
    seconds: float
    compile_seconds: float
    run: Callable[[Any, int], dict[str, Any]]

    def estimate(self, repeats: int, compile_seconds: float | None) -> float:
        """Seconds of the whole section; compile_seconds: of a program of this group, if known."""
        each = self.compile_seconds if compile_seconds is None else compile_seconds
        return 5.0 + self.programs * each + (1 + repeats) * self.seconds


@dataclass(frozen=True)
class Bench:
    """All sections, and how what they share is made.

    Attributes:
      policies: by name. judge: of all of them.
      sections: in the order of their worth.
      predicted: names of the policies whose job `gotr1 compile` looks at, in the end.
    """

    policies: dict[str, PolicyToMeasure]
    judge: JudgeToMeasure
    sections: tuple[Section, ...]
    predicted: tuple[str, ...] = ()

    def only(self, text: str) -> Bench:
        """The sections whose name holds a text; InputError if there are none."""
        kept = tuple(section for section in self.sections if text in section.name)
        predicted = tuple(name for name in self.predicted if text in f"{name} predicted")
        if not kept and not predicted:
            names = ", ".join(section.name for section in self.sections)
            raise InputError(f"--only {text}: no section has it in its name; there are {names}")
        return replace(self, sections=kept, predicted=predicted)

    def make_group(self, group: str, mesh: Mesh, chip: Chip, clock: CompileClock) -> Any:
        """What the sections of a group share."""
        kind, _, name = group.partition(" ")
        if kind == "judge":
            return JudgeRun(self.judge, mesh, clock)
        measured = self.policies[name]
        if kind == "decoder":
            return partial(measure_decoder, measured, mesh, clock)
        if kind == "step":
            return StepRun(measured, self.judge, mesh, chip, clock)
        return PolicyRun(measured, mesh, chip, clock)


def make_bench(sizes: str, chip: Chip) -> Bench:
    """The sections for a device; nothing is allocated."""
    if sizes == "tiny":
        policies, judge = [tiny_policy()], tiny_judge()
    else:
        memory = chip.hbm_bytes
        policies, judge = [released_policy(s, memory) for s in ("7b", "1b")], released_judge()
    first, rest = [], []
    steps = []
    for measured in policies:
        needs = PolicyNeeds.of(measured, chip)
        first.append(needs.main_sections())
        rest += needs.other_rollouts()
        steps.append(needs.step_section(judge))
    decoder = PolicyNeeds.of(policies[0], chip).decoder_section()
    ordered = [*first[0], _judge_section(judge, chip), decoder]
    ordered += [section for sections in first[1:] for section in sections]
    predicted = tuple(p.name for p in policies if p.compile_options)
    sections = (*ordered, *rest, *steps)
    return Bench({p.name: p for p in policies}, judge, sections, predicted)


@dataclass(frozen=True)
class PolicyNeeds:
    """Shapes of a policy, from which its sections are estimated.

    Attributes:
      policy, params: bytes of its arrays, and of those for decoding.
      layers, text_head, image_head: parts of the latter that a loop reads.
      itemsize: of the cache.
    """

    measured: PolicyToMeasure
    chip: Chip
    policy: int
    params: int
    layers: int
    text_head: int
    image_head: int
    itemsize: int

    @classmethod
    def of(cls, measured: PolicyToMeasure, chip: Chip) -> PolicyNeeds:
        """By tracing."""
        mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), ("data", "fsdp", "tensor"))
        config, sizes = measured.config, measured.sizes
        policy = policy_shapes(config.policy, sizes, mesh)
        sampler = make_sampler(config, policy, sizes, SPECIALS, mesh)
        params = sampler.prepare_program(policy.whole(policy.trained))[1]
        return cls(
            measured, chip, tree_bytes((policy.trained, policy.frozen)), tree_bytes(params),
            tree_bytes(params.layers), tree_bytes(params.text_head_VD),
            tree_bytes(params.image_head), params.norm_D.dtype.itemsize,
        )  # fmt: skip

    @property
    def _compile_seconds(self) -> float:
        """About half a second for each layer, which the loops have one after the other."""
        return 0.4 * self.measured.sizes.decoder.num_layers

    def main_sections(self) -> list[Section]:
        """The loops with the rows of a step, the update, its forward pass, and their difference."""
        name, measured = self.measured.name, self.measured
        group = f"policy {name}"
        config, D = measured.config, measured.sizes.decoder
        tokens = measured.prompt_tokens + measured.plan_tokens + measured.sizes.num_image_tokens
        forward = 2.0 * self.layers / self.itemsize * tokens * measured.update_rows
        passes = 2 + (config.policy.remat != "none") + (config.policy.lora is None)
        forward_seconds = _seconds(self.chip, forward, 0)
        # The residual stream of one micro-batch is kept for every layer.
        kept = config.update.micro_batch * tokens * D.hidden_size * self.itemsize * D.num_layers
        rollout = self.rollout(measured.step_rows)
        each = self._compile_seconds / 2  # the layers are a loop in these programs
        return [
            rollout,
            Section(
                f"{name} update", group, self.policy + kept, 2, passes * forward_seconds, each,
                PolicyRun.update,
            ),
            Section(
                f"{name} log-probs", group, self.policy, 1, forward_seconds, each,
                PolicyRun.log_probs,
            ),
            Section(
                f"{name} difference", group, rollout.bytes, 2,
                rollout.seconds + forward_seconds, self._compile_seconds,
                lambda run, _: run.difference(),
            ),
        ]  # fmt: skip

    def other_rollouts(self) -> list[Section]:
        """The loops with other numbers of rows."""
        return [
            self.rollout(rows) for rows in self.measured.rows if rows != self.measured.step_rows
        ]

    def rollout(self, rows: int) -> Section:
        """Both loops with so many rows."""
        measured = self.measured
        captions, steps = max(1, rows // 16), measured.plan_tokens
        prompt, tokens = measured.prompt_tokens, measured.sizes.num_image_tokens
        slot = slot_bytes(measured.sizes.decoder, self.itemsize)
        plan = plan_cost(self.layers + self.text_head, slot, captions, rows, prompt, steps)
        image = image_cost(
            self.layers + self.image_head, slot, captions, rows, prompt,
            np.full(rows, steps), tokens, True,
        )  # fmt: skip
        slots = captions * prompt + rows * (steps + 2 * tokens) + prompt + steps
        buckets = math.ceil(steps / measured.config.sampling.plan_bucket) + math.ceil(
            tokens / measured.config.sampling.image_bucket
        )
        return Section(
            f"{measured.name} rollout {rows}", f"policy {measured.name}",
            self.policy + self.params + slots * slot, buckets + 3,
            _seconds(self.chip, 0, plan.bytes + image.bytes), self._compile_seconds,
            lambda run, repeats: run.rollout(rows, repeats),
        )  # fmt: skip

    def decoder_section(self) -> Section:
        """Of the VQ decoder, which all policies share."""
        dtype = jnp.dtype(self.measured.config.policy.param_dtype)
        weights = tree_bytes(nnx.split(abstract_vq(self.measured.sizes.vq, dtype))[1])
        return Section(
            "VQ decode", f"decoder {self.measured.name}", weights, 2, 2.0, 10.0,
            lambda run, repeats: run(repeats),
        )  # fmt: skip

    def step_section(self, judge: JudgeToMeasure) -> Section:
        """A whole step; of its programs none is new where the others were measured before."""
        measured = self.measured
        rollout = measured.config.rollout
        loops, judging = self.rollout(measured.step_rows), _judge_section(judge, self.chip)
        main = {section.name: section for section in self.main_sections()}
        update = main[f"{measured.name} update"].seconds * rollout.rows / measured.update_rows
        seconds = loops.seconds * rollout.rows / measured.step_rows + update
        seconds += judging.seconds * rollout.rows / judge.samples
        # The judge's weights for decoding and its vision tower stay.
        return Section(
            f"{measured.name} step", f"step {measured.name}", loops.bytes + judging.bytes // 2, 12,
            seconds, self._compile_seconds, lambda run, repeats: run.step(repeats),
        )  # fmt: skip


def _judge_section(judge: JudgeToMeasure, chip: Chip) -> Section:
    state = abstract_state(judge.sizes, jnp.dtype(judge.engine.dtype))
    text = tree_bytes(state["text"])
    # Twelve batches of answers and their questions.
    decoding = 12 * judge.questions.boxes_tokens * text * judge.samples / 32
    reading = 2.0 * _products(judge.sizes.text) * 3600 * judge.samples
    # The weights are copied into the form for decoding.
    return Section(
        "judge", "judge", tree_bytes(state) + text, 24, _seconds(chip, reading, decoding),
        0.3 * judge.sizes.text.num_layers, lambda run, repeats: run.answers(repeats),
    )  # fmt: skip


def _products(decoder: DecoderConfig) -> int:
    """Parameters of a decoder's layers."""
    heads = 2 * (decoder.num_heads + decoder.num_kv_heads) * decoder.head_dim
    return decoder.num_layers * decoder.hidden_size * (heads + 3 * decoder.mlp_size)


def _seconds(chip: Chip, flops: float, read: float) -> float:
    known = chip if chip.flops and chip.bandwidth else _UNKNOWN_CHIP
    assert known.flops is not None and known.bandwidth is not None
    return (flops / known.flops + read / known.bandwidth) / _USED_SHARE
