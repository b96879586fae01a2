"""How different a caption's samples are: their plans, layouts and images.

A policy that has collapsed can score well while it writes one layout for every caption. A layout is
the set of a plan's boxes with their objects' names, `boxes` the same set without names. Both are
compared exactly. Plans without a readable box have no layout and are left out of its measures.

Images are compared by their tokens: the share of positions at which two images of a caption
have another token, 0 (the same image) to 1, averaged over all pairs. No image needs decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gotr1_jax.parallel.mesh import replicated
from gotr1_jax.plan import Plan, normalise_name

_BYTES = 3  # of a number that float32 holds exactly
NUMBERS = 6  # of a plan, in `plan_numbers`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampleKeys:
    """What is compared of B samples, numpy arrays (B,).

    Attributes:
      text_B, layout_B, boxes_B: int64, 48 bits of a hash of a plan's text, its layout, and its
        boxes without names; 0 where the plan has no readable box.
      image_distance_B: float32, mean share of tokens in which the image differs from the others
        of its caption; NaN where there is no other.
    """

    text_B: np.ndarray
    layout_B: np.ndarray
    boxes_B: np.ndarray
    image_distance_B: np.ndarray

    @classmethod
    def of(cls, numbers_BF: np.ndarray, image_distance_B: np.ndarray) -> SampleKeys:
        """The keys of B samples from their `plan_numbers`, float32 (B, NUMBERS)."""
        pairs = numbers_BF.astype(np.int64).reshape(-1, NUMBERS // 2, 2)
        keys_BF = (pairs[:, :, 0] << (8 * _BYTES)) | pairs[:, :, 1]
        text_B, layout_B, boxes_B = keys_BF.T
        distance_B = np.asarray(image_distance_B, np.float32)
        return cls(text_B, layout_B, boxes_B, distance_B)


def plan_numbers(plan: Plan) -> list[float]:
    """What identifies a plan's text, layout and boxes: two numbers below 2^24 each, which float32
    holds exactly, so that processes can exchange them."""
    named = sorted((normalise_name(n), (b.x1, b.y1, b.x2, b.y2)) for n, b in plan.boxes)
    boxes = sorted(box for _, box in named)
    text = _hash(" ".join(plan.text.split()))
    layout, bare = (_hash(repr(part)) if part else (0, 0) for part in (named, boxes))
    return [float(number) for number in (*text, *layout, *bare)]


def _hash(text: str) -> tuple[int, int]:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=2 * _BYTES).digest()
    return int.from_bytes(digest[:_BYTES], "big"), int.from_bytes(digest[_BYTES:], "big")


def image_distances(image_ids_BU: jax.Array, samples: int, mesh: Mesh) -> np.ndarray:
    """`SampleKeys.image_distance_B` of B = P * `samples` rows, caption-major, on the mesh.

    Every process calls it, and gets those of all rows.
    """
    compare = jax.jit(_token_distances, static_argnums=1, out_shardings=replicated(mesh))
    return np.asarray(compare(image_ids_BU, samples))


def _token_distances(image_ids_BU: jax.Array, samples: int) -> jax.Array:
    ids_PGU = image_ids_BU.reshape(-1, samples, image_ids_BU.shape[-1])
    share_PGG = jnp.mean(ids_PGU[:, :, None] != ids_PGU[:, None], axis=-1, dtype=jnp.float32)
    others = max(samples - 1, 1)
    distance_B = share_PGG.sum(axis=-1).reshape(-1) / others
    return distance_B if samples > 1 else jnp.full_like(distance_B, jnp.nan)


def distinct_share(keys_G: np.ndarray) -> float:
    """Share of distinct ones; of none or a single one there is no share: NaN.

    >>> distinct_share(np.array([7, 7, 8, 7]))
    0.5
    """
    return len(np.unique(keys_G)) / len(keys_G) if len(keys_G) > 1 else float("nan")


def commonest_share(keys_G: np.ndarray) -> float:
    """Share of the commonest one; NaN as for `distinct_share`.

    >>> commonest_share(np.array([7, 7, 8, 7]))
    0.75
    """
    if len(keys_G) < 2:
        return float("nan")
    return int(np.unique(keys_G, return_counts=True)[1].max()) / len(keys_G)


def caption_diversity(
    keys: SampleKeys, samples: int, images_per_plan: int = 1
) -> dict[str, np.ndarray]:
    """`OF_CAPTIONS` of B = P * `samples` rows, caption-major: float32 (P,) each.

    NaN for a caption with fewer than two plans or images to compare. Of the rows that share a
    plan (`images_per_plan` successive ones) one counts as a plan.
    """
    texts_PK, layouts_PK = (
        keys_B.reshape(-1, samples)[:, ::images_per_plan] for keys_B in (keys.text_B, keys.layout_B)
    )
    layouts = [layouts_K[layouts_K != 0] for layouts_K in layouts_PK]
    return {
        "distinct_plans": _column(map(distinct_share, texts_PK)),
        "distinct_layouts": _column(map(distinct_share, layouts)),
        "commonest_layout": _column(map(commonest_share, layouts)),
        "images": keys.image_distance_B.reshape(-1, samples).mean(axis=1, dtype=np.float32),
    }


def _column(values: Iterable[float]) -> np.ndarray:
    return np.asarray(list(values), np.float32)


def overall_diversity(keys: SampleKeys, images_per_plan: int = 1) -> dict[str, float]:
    """`OF_ALL` of all rows; NaN where fewer than two plans have boxes."""
    boxes_B = keys.boxes_B[::images_per_plan]
    return {"commonest_boxes": commonest_share(boxes_B[boxes_B != 0])}


def diversity_means(
    captions: Mapping[str, np.ndarray], overall: Mapping[str, float]
) -> dict[str, float]:
    """A number for each measure that has a value: of captions the mean over those that have one."""
    known = {name: values_P[np.isfinite(values_P)] for name, values_P in captions.items()}
    means = {
        name: float(values.mean(dtype=np.float64)) for name, values in known.items() if values.size
    }
    return means | {name: value for name, value in overall.items() if np.isfinite(value)}


def step_diversity(
    keys: SampleKeys | None, samples: int, images_per_plan: int = 1
) -> dict[str, float]:
    """`diversity/NAME` of the samples of a training step, those that have a value."""
    if keys is None:
        return {}
    captions = caption_diversity(keys, samples, images_per_plan)
    means = diversity_means(captions, overall_diversity(keys, images_per_plan))
    return {f"diversity/{name}": value for name, value in means.items()}
