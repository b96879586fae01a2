"""Reads the trained arrays of a run from its newest good checkpoint, without building the job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from gotr1_jax.config import load_config
from gotr1_jax.convert.find import checkpoint_path
from gotr1_jax.convert.tree import dotted
from gotr1_jax.errors import InputError, RunError
from gotr1_jax.grpo.config import GrpoConfig
from gotr1_jax.models.config import LoraConfig
from gotr1_jax.trainer.checkpoint import Checkpoints
from gotr1_jax.trainer.manifest import raise_read_errors
from gotr1_jax.trainer.run_dir import CHECKPOINTS_NAME, CONFIG_NAME

_PARAMS = "params"
_LORA_A, _LORA_B = ".lora_a", ".lora_b"


@dataclass(frozen=True)
class RunWeights:
    """The trained arrays of a GRPO run.

    Attributes:
      step: of the run's checkpoint.
      base: directory of the model checkpoint that the run started from.
      init: its name in the configuration.
      lora: settings of the adapters; None if all parameters are trained.
      arrays: trained arrays by dotted path ("policy.decoder.layers.q.lora_a").
    """

    step: int
    base: Path
    init: str
    lora: LoraConfig | None
    arrays: dict[str, np.ndarray]

    def adapters(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """(A (L, in, rank), B (L, rank, out)) by the path of the kernel that they adapt."""
        kernels = [p.removesuffix(_LORA_A) for p in self.arrays if p.endswith(_LORA_A)]
        return {
            f"{path}.kernel": (self.arrays[path + _LORA_A], self.arrays[path + _LORA_B])
            for path in kernels
        }

    def changes(self) -> dict[str, Callable[[int | None, np.ndarray], np.ndarray]]:
        """By path of an array of the base: f(layer, array), the trained array of one layer.

        LoRA is merged in float32; the sum is rounded once, when it is written.
        """
        if self.lora is None:
            return {path: _replaced(array) for path, array in self.arrays.items()}
        scale = self.lora.alpha / self.lora.rank
        return {path: _merged(a, b, scale) for path, (a, b) in self.adapters().items()}


def read_run_weights(run: Path) -> RunWeights:
    """Reads the newest good checkpoint of a GRPO run.

    Raises InputError if it is not a GRPO run or has no checkpoint yet, RunError if no checkpoint
    is good.
    """
    try:
        config = load_config(GrpoConfig, run / CONFIG_NAME)
    except InputError as error:
        raise InputError(
            f"{run} is not a run of gotr1 train grpo, whose checkpoints can be exported: {error}"
        ) from error
    checkpoints = Checkpoints(run / CHECKPOINTS_NAME)
    step = checkpoints.latest_good()
    if step is None:
        raise InputError(f"the run {run} has no checkpoint yet: let it go on to its first")
    with raise_read_errors(checkpoints.folder(step)):
        arrays = _read_params(checkpoints.folder(step))
    base = checkpoint_path(config.policy.init)
    return RunWeights(step, base, config.policy.init, config.policy.lora, arrays)


def _read_params(folder: Path) -> dict[str, np.ndarray]:
    """The parameters only; the optimizer state is not read."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        record = reader.restore(folder, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    wanted = {
        path: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for path, (shape, dtype) in record["arrays"].items()
        if path.split("/")[0] == _PARAMS
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
        keys = [jax.tree_util.DictKey(word) for word in path.split("/")[1:] if word != "value"]
        out[dotted("policy", keys)] = np.asarray(array)
    return out


def _replaced(array: np.ndarray) -> Callable[[int | None, np.ndarray], np.ndarray]:
    return lambda layer, _: array if layer is None else array[layer]


def _merged(
    a_LIR: np.ndarray, b_LRO: np.ndarray, scale: float
) -> Callable[[int | None, np.ndarray], np.ndarray]:
    def merge(layer: int | None, kernel: np.ndarray) -> np.ndarray:
        assert layer is not None  # adapters sit on stacked layers
        total = a_LIR[layer] @ b_LRO[layer]
        total *= np.float32(scale)
        total += kernel.astype(np.float32)
        return total

    return merge
