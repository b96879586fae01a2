"""Examples of supervised training: from their source to batches on the mesh."""

from __future__ import annotations

from functools import partial

import numpy as np
from jax.sharding import Mesh

from gotr1_jax.data.pipeline import SftExampleBatch
from gotr1_jax.parallel.mesh import held_rows
from gotr1_jax.parallel.placement import put_held_rows
from gotr1_jax.sampler.token_batch import TokenBatch


def to_rows(batch: SftExampleBatch, count: int, mesh: Mesh) -> TokenBatch:
    """A batch of examples as rows on the mesh; every token of the plan is to be learned.

    The batch has `count` rows, of which `batch` holds those that `held_rows` names.
    """
    T = batch.plan_ids_BT.shape[1]
    mask_BT = np.arange(T)[None, :] < batch.plan_len_B[:, None]
    put = partial(put_held_rows, held=held_rows(count, mesh), count=count, mesh=mesh)
    return TokenBatch(
        prompt_ids_BC=put(batch.prompt_ids_BC),
        prompt_len_B=put(batch.prompt_len_B),
        plan_ids_BT=put(batch.plan_ids_BT),
        plan_len_B=put(batch.plan_len_B),
        plan_mask_BT=put(mask_BT),
        image_ids_BU=put(batch.image_ids_BU),
    )
