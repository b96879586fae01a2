"""Teaching a new judge's vision tower to see, before it is asked anything: `objective: objects`.

A linear head, thrown away afterwards, reads from each unit's vector which object has its center
there: color, shape, size and box. Every image labels all of its objects, and the text model has no
part in it, so that a step costs a fraction of one that answers questions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from gotr1_jax.judge_sft.batch import JudgeBatch
from gotr1_jax.judge_sft.objects import CLASSES, UnitLabels
from gotr1_jax.judge_sft.update import JudgeStep, update_by
from gotr1_jax.models.layers import Linear
from gotr1_jax.models.qwen_vl import QwenVL
from gotr1_jax.plan.boxes import SCALE
from gotr1_jax.trainer.state import TrainState

_NAMES = ("color", "shape", "size")
# A box that is wrong by a quarter of the image weighs about as much as an unknown color.
_WEIGHTS = {"center": 4.0, **dict.fromkeys(_NAMES, 1.0), "box": 8.0}
_OUTPUTS = 1 + sum(CLASSES) + 4


class ObjectDetector(nnx.Module):
    """A judge, of which the tower is used, and the head on its units."""

    def __init__(
        self, judge: QwenVL, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32
    ) -> None:
        self.judge = judge
        self.head = Linear(
            judge.cfg.text.hidden_size, _OUTPUTS, rngs=rngs, axes=("embed", "patch"), bias=True,
            param_dtype=param_dtype,
        )  # fmt: skip

    def __call__(self, batch: JudgeBatch) -> list[jax.Array]:
        """Float32 logits (E, U, n): 1 of an object's center, those of each of `CLASSES`, and 4
        fractions of a box."""
        assert batch.patches is not None
        # What stands in place of an image token; DeepStack's vectors lie behind.
        units = self.judge.embed_images(batch.patches)[..., : self.judge.cfg.text.hidden_size]
        splits = np.cumsum([1, *CLASSES])
        return jnp.split(self.head(units).astype(jnp.float32), splits, axis=-1)


def detection_sums(outputs: list[jax.Array], labels: UnitLabels) -> dict[str, jax.Array]:
    """Float32 sums over units and objects, which add up over micro-batches.

    nats of `center`, `color`, `shape` and `size`; `box`, mean absolute errors of four fractions;
    `right_...`, units, and classes of objects, that are told rightly.
    """
    center, *classes, boxes_EU4 = outputs
    centers_EU, kinds_EU3 = jnp.asarray(labels.centers_EU), jnp.asarray(labels.kinds_EU3)
    is_unit_EU, has_EU = centers_EU >= 0, centers_EU > 0
    nats_EU = optax.sigmoid_binary_cross_entropy(center[..., 0], has_EU)
    error_EU = jnp.abs(boxes_EU4 - jnp.asarray(labels.boxes_EU4)).mean(-1)
    sums = {
        "center": jnp.where(is_unit_EU, nats_EU, 0.0),
        "right_units": ((center[..., 0] > 0) == has_EU) & is_unit_EU,
        "box": jnp.where(has_EU, error_EU, 0.0),
    }
    for i, (name, logits) in enumerate(zip(_NAMES, classes, strict=True)):
        kind_EU = kinds_EU3[..., i]
        nats_EU = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(kind_EU, 0))
        sums[name] = jnp.where(kind_EU >= 0, nats_EU, 0.0)
        sums[f"right_{name}"] = (logits.argmax(-1) == kind_EU) & (kind_EU >= 0)
    return {name: value.astype(jnp.float32).sum() for name, value in sums.items()}


def make_detector_step(
    graphdef: Any, optimizer: optax.GradientTransformation, micro_batch: int
) -> JudgeStep:
    """One update of the tower. Its metrics: the loss, the shares `right/units` of units and
    `right/color`, `right/shape` and `right/size` of objects of which it is said, the mean absolute
    error of a box's side, `thousandths/box`, and the norm of the gradient before clipping.

    Args:
      graphdef: of an `ObjectDetector`; merged with the state's parameters and `frozen`.
      optimizer: of the trained parameters.
      micro_batch: examples of a forward and backward pass.
    """

    def step(
        state: TrainState, frozen: Any, batch: JudgeBatch
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        assert batch.labels is not None
        centers_EU = jnp.asarray(batch.labels.centers_EU)
        units, objects = (jnp.maximum((centers_EU >= n).sum(), 1) for n in (0, 1))
        # A size may be left unsaid.
        labelled = jnp.maximum((jnp.asarray(batch.labels.kinds_EU3) >= 0).sum((0, 1)), 1)
        of = {"center": units, "box": objects, **dict(zip(_NAMES, labelled, strict=True))}

        def loss_of(params: Any, part: JudgeBatch) -> tuple[jax.Array, dict[str, jax.Array]]:
            assert part.labels is not None
            sums = detection_sums(nnx.merge(graphdef, params, frozen)(part), part.labels)
            terms = {n: sums[n] / of[n] for n in _WEIGHTS}
            return sum((_WEIGHTS[n] * x for n, x in terms.items()), jnp.zeros(())), sums

        state, loss, sums, norm = update_by(loss_of, state, batch, optimizer, micro_batch)
        metrics = {f"right/{name}": sums[f"right_{name}"] / of[name] for name in _NAMES}
        metrics["right/units"] = sums["right_units"] / units
        metrics["thousandths/box"] = SCALE * sums["box"] / objects
        return state, {"loss": loss, **metrics, "grad_norm": norm}

    return jax.jit(step, donate_argnums=0)
