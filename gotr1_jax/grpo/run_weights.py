"""What a GRPO run trained, read from its newest good checkpoint without building the job.

A model is written from the run's base and these arrays: the sum of base and adapters is taken in
float32 and rounded once, to the dtype of the file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from gotr1_jax.config import load_config
from gotr1_jax.convert.find import RUN_MODEL, find_checkpoint
from gotr1_jax.convert.generation_config import GenerationConfig
from gotr1_jax.convert.open_checkpoint import open_checkpoint
from gotr1_jax.convert.rules import sources
from gotr1_jax.convert.translate import Change, translate_checkpoint
from gotr1_jax.convert.tree import dotted, model_view
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.grpo.sampled import trained_sampling
from gotr1_jax.io.reading import read_json_object
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.manifest import manifest_problem, raise_read_errors
from gotr1_jax.trainer.run_dir import CHECKPOINTS_NAME, CONFIG_NAME, RunDir

_PARAMS, _MASTER = "params/", "opt_state/master/"
_SMALL = 1 << 20  # entries
_LORA_A, _LORA_B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class RunWeights:
    """The trained arrays of a GRPO run.

    Attributes:
      step: of the run's checkpoint.
      base: directory of the model checkpoint that the run started from.
      config: of the run.
      arrays: trained arrays by dotted path ("policy.decoder.layers.q.lora_a"); of parameters that
        are not float32 their float32 masters.
    """

    step: int
    base: Path
    config: GrpoConfig
    arrays: dict[str, np.ndarray]

    @property
    def dtype(self) -> str:
        """That the policy's weights had in training; adapters are always float32."""
        return self.config.policy.param_dtype

    @property
    def lora(self) -> LoraConfig | None:
        """Settings of the adapters; None if all parameters are trained."""
        return self.config.policy.lora

    @property
    def sampled(self) -> GenerationConfig:
        """How the policy wants to be sampled."""
        return trained_sampling(self.config)

    def adapters(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(A (L, in, rank), B (L, rank, out)) by the path of the kernel that they adapt."""
        kernels = [p.removesuffix(_LORA_A) for p in self.arrays if p.endswith(_LORA_A)]
        return {
            f"{path}.kernel": (self.arrays[path + _LORA_A], self.arrays[path + _LORA_B])
            for path in kernels
        }

    def changes(self) -> dict[str, Change]:
        """By path of an array of the base: f(layer, array), the trained array of one layer.

        LoRA is merged in float32; the result is float32 and not rounded yet.
        """
        if self.lora is None:
            return {path: _replaced(array) for path, array in self.arrays.items()}
        scale = self.lora.alpha / self.lora.rank
        return {path: _merged(a, b, scale) for path, (a, b) in self.adapters().items()}


class Rounding:
    """Counts what is lost when trained values are written in `dtype`.

    Attributes:
      changes: those of the weights, which count as they are called.
    """

    def __init__(self, weights: RunWeights, dtype: str) -> None:
        self._dtype, self._adapters = dtype, weights.lora is not None
        self._largest = 0.0
        self._stored: set[str] = set()
        self.changes = {path: self._counted(of) for path, of in weights.changes().items()}

    def _counted(self, change: Change) -> Change:
        def counted(layer: int | None, array: np.ndarray) -> np.ndarray:
            self._stored.add(array.dtype.name)
            exact = change(layer, array)
            if self._dtype != exact.dtype.name:
                lost = np.abs(exact.astype(self._dtype).astype(np.float32) - exact)
                self._largest = max(self._largest, float(lost.max(initial=0.0)))
            return exact

        return counted

    def line(self) -> str:
        """What was rounded, for a person to read; once everything is written."""
        what = "trained weights"
        if self._adapters:
            what = f"base in {', '.join(sorted(self._stored))}, its sum with the adapters"
        if self._dtype == "float32":
            return f"{what} in float32, not rounded"
        return (
            f"{what} rounded to {self._dtype}, largest difference {self._largest:.3g}; "
            "gotr1 export --dtype float32 writes it exactly"
        )


def write_run_model(target: Path, weights: RunWeights) -> str:
    """Writes a run's model in the released format; returns the line about its rounding.

    The policy is in the dtype of training; everything else keeps that of the base. Raises
    InputError for a base that is not there any more, RunError if it cannot be written.
    """
    rounding = Rounding(weights, weights.dtype)
    translate_checkpoint(
        target, open_checkpoint(weights.base), "original",
        part_dtypes={"policy": weights.dtype}, changes=rounding.changes, generation=weights.sampled,
    )  # fmt: skip
    return rounding.line()


def read_weights_of_model(run: Path) -> RunWeights:
    """`read_run_weights` of a finished run, of the step that its model/ is of.

    Raises InputError also where the newest good checkpoint is of another step, and where another
    checkpoint stands at the place of the run's base.
    """
    weights = read_run_weights(run)
    planned = weights.config.steps
    # Without a summary the run was killed between its model and it.
    done = read_json_object(RunDir(run).summary, missing_ok=True).get("steps", planned)
    if weights.step not in (done, planned, _restored_step(run)):
        raise InputError(f"its newest checkpoint is of step {weights.step}, not {done}")
    if weights.lora is not None:
        _check_base(weights, run / RUN_MODEL)
    return weights


def _check_base(weights: RunWeights, model: Path) -> None:
    """That the base's small arrays without adapters are still those of the run's model."""
    base, ours = open_checkpoint(weights.base), open_checkpoint(model)
    adapted = weights.adapters()
    for path, shape in base.leaves.items():
        if not path.startswith("policy.") or path in adapted or math.prod(shape) > _SMALL:
            continue
        places = (sources(path, shape, opened.naming) for opened in (base, ours))
        for theirs, mine in zip(*places):
            array = model_view(mine, ours.tensors)
            if not np.array_equal(model_view(theirs, base.tensors).astype(array.dtype), array):
                raise InputError(
                    f"its base {weights.base} is not what it began from: {theirs.name} differs"
                )


def grpo_config(run: Path) -> GrpoConfig | None:
    """The configuration of a GRPO run; None for the directory of another job."""
    try:
        return load_config(GrpoConfig, run / CONFIG_NAME)
    except InputError:
        return None


def read_run_weights(run: Path) -> RunWeights:
    """Reads the newest good checkpoint of a GRPO run, or the one that patience went back to.

    Raises InputError if it is not a GRPO run, has no checkpoint yet, or no good one of the step
    that it went back to; RunError if no checkpoint is good.
    """
    try:
        config = load_config(GrpoConfig, run / CONFIG_NAME)
    except InputError as error:
        raise InputError(
            f"{run} is not a run of gotr1 train grpo, whose checkpoints can be exported: {error}"
        ) from error
    checkpoints = Checkpoints(run / CHECKPOINTS_NAME)
    step = _restored_step(run)
    if step is None:
        step = checkpoints.latest_good()
    elif step not in checkpoints.steps():
        raise InputError(
            f"{run} ended with the weights of step {step}, of which it has no checkpoint"
        )
    elif (problem := manifest_problem(checkpoints.folder(step), step)) is not None:
        raise InputError(f"{run} ended with the weights of step {step}, but {problem}")
    if step is None:
        raise InputError(f"the run {run} has no checkpoint yet: let it go on to its first")
    with raise_read_errors(checkpoints.folder(step)):
        arrays = _read_params(checkpoints.folder(step))
    return RunWeights(step, find_checkpoint(config.policy.init), config, arrays)


def _restored_step(run: Path) -> int | None:
    """The step that patience went back to when the run ended (0: before training); else None."""
    summary = read_json_object(RunDir(run).summary, missing_ok=True)
    patience = summary.get("patience")
    step = patience.get("weights_of_step") if isinstance(patience, dict) else None
    return step if isinstance(step, int) and step != summary.get("steps") else None


def _read_params(folder: Path) -> dict[str, np.ndarray]:
    """The parameters, or their float32 masters, only; moments are not read."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        record = reader.restore(folder, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    prefix = _MASTER if any(path.startswith(_MASTER) for path in record["arrays"]) else _PARAMS
    wanted = {
        path: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for path, (shape, dtype) in record["arrays"].items()
        if path.startswith(prefix)
    }
    if not wanted:
        raise RunError(f"{folder} holds no parameters")
    with ocp.PyTreeCheckpointer() as reader:
        arguments = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args={path: ocp.RestoreArgs(restore_type=np.ndarray) for path in wanted},
            partial_restore=True,
        )
        found = reader.restore(folder / "state", args=arguments)
    out = {}
    for path, array in found.items():
        keys = [
            jax.tree_util.DictKey(word)
            for word in path.removeprefix(prefix).split("/")
            if word != "value"
        ]
        out[dotted("policy", keys)] = np.asarray(array)
    return out


def _replaced(array: np.ndarray) -> Change:
    def replace(layer: int | None, _: np.ndarray) -> np.ndarray:
        return (array if layer is None else array[layer]).astype(np.float32)

    return replace


def _merged(a_LIR: np.ndarray, b_LRO: np.ndarray, scale: float) -> Change:
    def merge(layer: int | None, kernel: np.ndarray) -> np.ndarray:
        assert layer is not None  # adapters sit on stacked layers
        total = a_LIR[layer] @ b_LRO[layer]
        total *= np.float32(scale)
        total += kernel.astype(np.float32)
        return total

    return merge
