"""Qwen2.5-VL and Qwen3-VL against `transformers` with the same weights, in float32: block by block,
whole, and token by token. `transformers` uses positions in time, height and width only when it is
given `mm_token_type_ids`, so they always are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny_qwen import TINY_QWEN, TINY_QWEN3, write_tiny_qwen

from gotr1_jax.convert.qwen_vl import QwenCheckpoint, load_qwen
from gotr1_jax.images.qwen import QwenImage, read_image
from gotr1_jax.images.qwen_pack import (
    PackedImages,
    mrope_positions,
    pack_images,
    row_shape,
    unit_places,
)
from gotr1_jax.models.decoder import causal_attention
from gotr1_jax.models.qwen3_vision import Qwen3VisionTower
from gotr1_jax.models.qwen_vision import image_attention, vision_rope, window_attention
from gotr1_jax.models.qwen_vl import EmbeddedRows, QwenVL
from gotr1_jax.tokenizers.qwen import ImageTokens

# (height, width) in units. A window is 4 by 4: the first and third divide into whole ones, the
# others not.
GRIDS = ((4, 4), (6, 5), (8, 4), (1, 1), (5, 3))
# Most sizes of Qwen3-VL have a tied head.
TIED3 = replace(TINY_QWEN3, text=replace(TINY_QWEN3.text, tie_embeddings=True))


@dataclass(frozen=True)
class Pair:
    """A tiny checkpoint, read by us and by `transformers`."""

    checkpoint: QwenCheckpoint
    theirs: Any

    @cached_property
    def ours(self) -> QwenVL:
        return self.checkpoint.module()


@pytest.fixture(scope="module", params=[(TINY_QWEN, 0), (TIED3, 5)], ids=["2.5", "3"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText

    torch.set_num_threads(1)
    directory = write_tiny_qwen(tmp_path_factory.mktemp("qwen") / "model", *request.param)
    theirs = AutoModelForImageTextToText.from_pretrained(directory, dtype="float32")
    return Pair(load_qwen(directory, jnp.float32), theirs.eval())


def images_of(pair: Pair) -> list[QwenImage]:
    rng, settings = np.random.default_rng(1), pair.checkpoint.preprocessing
    unit = settings.geometry.unit_size
    sizes = [(unit * h, unit * w) for h, w in GRIDS]
    images = [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes]
    return [read_image(image, settings) for image in images]


ROWS = 4  # one more than the images need


def pack(pair: Pair, images: list[QwenImage]) -> PackedImages:
    geometry = pair.checkpoint.config.vision.geometry
    return pack_images(images, geometry, row_shape(GRIDS, geometry), ROWS)


def for_transformers(images: list[QwenImage]) -> dict[str, Any]:
    """The images as `transformers` wants them: both frames, patches of all joined."""
    import torch

    joined = np.concatenate([p.patches_NE for p in images])
    doubled = np.repeat(joined.reshape(len(joined), 3, 1, -1), 2, axis=2)
    grids = [[1, 2 * p.grid[0], 2 * p.grid[1]] for p in images]
    return {
        "pixel_values": torch.from_numpy(doubled.reshape(len(joined), -1)),
        "image_grid_thw": torch.tensor(grids),
    }


def joined_like_theirs(x_RND: jax.Array, packed: PackedImages, per_unit: int) -> np.ndarray:
    """Images one after another out of our rows; `per_unit` entries a unit."""
    flat = np.asarray(x_RND).reshape(-1, x_RND.shape[-1])
    starts = packed.starts_P * per_unit
    return np.concatenate(
        [flat[s : s + h * w * per_unit] for s, (h, w) in zip(starts, packed.grids)]
    )


def test_every_vision_block_and_the_merger_equal_transformers(pair: Pair) -> None:
    import torch

    images = images_of(pair)
    packed = pack(pair, images)
    assert packed.batch.images_RN.max(1).tolist() == [3, 1, 1, 0]
    visual = pair.theirs.model.visual
    seen: list[np.ndarray] = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: seen.append(out.numpy()))
        for m in (visual.patch_embed, *visual.blocks)
    ]
    inputs = for_transformers(images)
    with torch.no_grad():
        out = visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    for hook in hooks:
        hook.remove()

    tower, batch = pair.ours.vision, jax.tree.map(jnp.asarray, packed.batch)
    in_order = jnp.asarray(np.concatenate([p.patches_NE for p in images]))
    np.testing.assert_allclose(tower.patch(in_order), seen[0], atol=2e-5)
    vision = pair.checkpoint.config.vision
    x, rope = tower.patch(batch.patches_RNE), vision_rope(vision, batch.positions_RN2)
    if isinstance(tower, Qwen3VisionTower):
        x = x + tower.embed_positions(batch.positions_RN2, batch.sizes_RN2)
    graphdef, stacked = nnx.split(tower.blocks)
    for i in range(vision.num_layers):

        def attend(q: jax.Array, k: jax.Array, v: jax.Array, i: int = i) -> jax.Array:
            if i in getattr(vision, "full_attention", (i,)):
                return image_attention(q, k, v, batch.images_RN)
            return window_attention(q, k, v, batch.windows_RWJ, batch.slots_RN)

        block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], stacked))
        x = block(x, rope, attend)
        np.testing.assert_allclose(
            joined_like_theirs(x, packed, 4), seen[i + 1], atol=2e-5, err_msg=f"block {i}"
        )
    units = jax.jit(lambda b: pair.ours.embed_images(b))(batch)
    assert np.isfinite(units).all()
    deep = [feature.numpy() for feature in getattr(out, "deepstack_features", [])]
    assert units.shape[-1] == vision.vector_size == 32 * (1 + len(deep))
    expected = np.concatenate([out.pooler_output.numpy(), *deep], axis=-1)
    np.testing.assert_allclose(joined_like_theirs(units, packed, 1), expected, atol=3e-5)


@dataclass(frozen=True)
class Rows:
    """Text rows about images, ready for our model."""

    ids_BS: np.ndarray
    lengths_B: np.ndarray
    places_BS: np.ndarray
    positions_3BS: np.ndarray
    packed: PackedImages


# Rows of text and of numbers of images.
MESSAGES: dict[str, list[list[str | int]]] = {
    "text only": [["What is a cat?"], ["Hello."]],
    "left and right": [["Look at ", 1, " and say what is left of the cat."]],
    "many": [
        [0, "Is this a cat?"],
        ["Two of them: ", 1, " then ", 2, ". Which one is larger?"],
        [3, 4, "?"],
        ["No image."],
        ["The first once more ", 1],
    ],
}


def make_rows(pair: Pair, messages: list[list[str | int]], room: int = 0) -> Rows:
    """Rows padded on the right to one length and `room`."""
    images = images_of(pair)
    packed, tokenizer = pack(pair, images), pair.checkpoint.tokenizer
    ids = [
        tokenizer.encode_chat(
            [ImageTokens(images[p].units) if isinstance(p, int) else p for p in message]
        )
        for message in messages
    ]
    numbers = [[p for p in message if isinstance(p, int)] for message in messages]
    lengths = np.array([len(row) for row in ids])
    padded = np.full((len(ids), lengths.max() + room), tokenizer.ids.text_end)
    for b, row in enumerate(ids):
        padded[b, : len(row)] = row
    mask = padded == tokenizer.ids.image
    return Rows(
        padded,
        lengths,
        unit_places(mask, numbers, packed),
        mrope_positions(mask, [[packed.grids[i] for i in row] for row in numbers]),
        packed,
    )


def their_inputs(pair: Pair, rows: Rows, messages: list[list[str | int]], b: int) -> dict[str, Any]:
    import torch

    ids = torch.from_numpy(rows.ids_BS[b : b + 1, : rows.lengths_B[b]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if numbers := [p for p in messages[b] if isinstance(p, int)]:
        images = images_of(pair)
        inputs |= for_transformers([images[i] for i in numbers])
        inputs["mm_token_type_ids"] = (ids == pair.checkpoint.tokenizer.ids.image).int()
    return inputs


@pytest.mark.parametrize("name", MESSAGES)
def test_every_decoder_layer_and_the_logits_equal_transformers(pair: Pair, name: str) -> None:
    import torch

    messages = MESSAGES[name]
    rows, model = make_rows(pair, messages), pair.ours

    @jax.jit
    def layers(batch: Any) -> tuple[list[jax.Array], jax.Array]:
        embedded = model.embed(
            jnp.asarray(rows.ids_BS), jnp.asarray(rows.places_BS), model.embed_images(batch)
        )
        positions = jnp.asarray(rows.positions_3BS)
        states, h = [embedded.x_BSD], embedded.x_BSD
        graphdef, stacked = nnx.split(model.text.layers)
        for i in range(TINY_QWEN.text.num_layers - 1):
            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], stacked))
            h = block(h, model.text.rope(positions), causal_attention)
            states.append(h)
            if embedded.added_NBSD is not None:
                h = h + embedded.added_NBSD[i]
        hidden = model.hidden(embedded, positions)
        return [*states, hidden], model.logits(hidden)

    states, logits = layers(rows.packed.batch)
    for b in range(len(messages)):
        with torch.no_grad():
            out = pair.theirs(**their_inputs(pair, rows, messages, b), output_hidden_states=True)
        n = rows.lengths_B[b]
        for i, (ours, theirs) in enumerate(zip(states, out.hidden_states, strict=True)):
            np.testing.assert_allclose(ours[b, :n], theirs[0], atol=5e-5, err_msg=f"{b}: {i}")
        np.testing.assert_allclose(logits[b, :n], out.logits[0], atol=1e-4)


def greedy(model: QwenVL, rows: Rows, count: int) -> np.ndarray:
    """`count` tokens a row with cached keys and values: an attention with a cache is injected."""
    B, S = rows.ids_BS.shape
    cfg = model.text.cfg
    graphdef, stacked = nnx.split(model.text.layers)

    def run(rows: EmbeddedRows, positions: jax.Array, attend: Callable) -> jax.Array:
        rope, x = model.text.rope(positions), rows.x_BSD
        for i in range(cfg.num_layers):
            block = nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], stacked))
            x = block(x, rope, lambda q, k, v, i=i: attend(i, q, k, v))
            if rows.added_NBSD is not None and i < len(rows.added_NBSD):
                x = x + rows.added_NBSD[i]
        return model.text.norm(x)

    @jax.jit
    def generate(batch: Any) -> jax.Array:
        cache: dict[int, tuple[jax.Array, jax.Array]] = {}

        def fill(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            cache[i] = (k, v)
            return causal_attention(q, k, v)

        x = model.embed(
            jnp.asarray(rows.ids_BS), jnp.asarray(rows.places_BS), model.embed_images(batch)
        )
        positions = jnp.asarray(rows.positions_3BS)
        lengths = jnp.asarray(rows.lengths_B)
        hidden = run(x, positions, fill)
        first = jnp.argmax(model.logits(hidden[jnp.arange(B), lengths - 1]), -1)

        def step(carry: Any, n: jax.Array) -> tuple[Any, jax.Array]:
            token, caches = carry
            new = dict(caches)
            index = lengths + n  # of the token that is read now

            def attend(i: int, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                here = (jnp.arange(S) == index[:, None])[..., None, None]
                keys, values = (jnp.where(here, a, c) for a, c in zip((k, v), new[i]))
                new[i] = (keys, values)
                seen = (jnp.arange(S) <= index[:, None])[:, None, None]
                return jax.nn.dot_product_attention(q, keys, values, mask=seen)

            # An answer is text: its three positions are equal.
            position = positions[0, jnp.arange(B), index]
            hidden = run(model.embed(token[:, None]), position[:, None], attend)
            return (jnp.argmax(model.logits(hidden[:, 0]), -1), new), token

        _, tokens = jax.lax.scan(step, (first, cache), jnp.arange(count))
        return tokens.T

    return np.asarray(generate(rows.packed.batch))


def test_greedy_decoding_equals_transformers_token_for_token(pair: Pair) -> None:
    messages, count = MESSAGES["many"], 64
    rows = make_rows(pair, messages, room=count)
    ours = greedy(pair.ours, rows, count)
    for b in range(len(messages)):
        out = pair.theirs.generate(
            **their_inputs(pair, rows, messages, b),
            do_sample=False, max_new_tokens=count, min_new_tokens=count, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        np.testing.assert_array_equal(ours[b], out[0, rows.lengths_B[b] :].numpy())
    assert len({tuple(row) for row in ours.tolist()}) == len(messages)
    assert min(len(set(row)) for row in ours.tolist()) > 10, "rows that repeat a token test little"


def test_positions_equal_transformers(pair: Pair) -> None:
    import torch

    rows = make_rows(pair, MESSAGES["many"])
    ids = torch.from_numpy(rows.ids_BS)
    kinds = (ids == pair.checkpoint.tokenizer.ids.image).int()
    order = [p for message in MESSAGES["many"] for p in message if isinstance(p, int)]
    grids = torch.tensor([[1, 2 * h, 2 * w] for h, w in (rows.packed.grids[i] for i in order)])
    theirs, _ = pair.theirs.model.get_rope_index(ids, kinds, image_grid_thw=grids)
    np.testing.assert_array_equal(rows.positions_3BS, theirs.numpy())


def test_a_image_costs_nothing_to_its_neighbors(pair: Pair) -> None:
    """Alone in a row or packed with others, an image gives the same vectors."""
    images = images_of(pair)
    together = pack(pair, images)
    embed = jax.jit(pair.ours.embed_images)
    joined = joined_like_theirs(embed(together.batch), together, 1)
    alone = [pack(pair, [image]) for image in images]
    separate = [joined_like_theirs(embed(one.batch), one, 1) for one in alone]
    np.testing.assert_allclose(joined, np.concatenate(separate), atol=2e-5)


def test_loads_what_transformers_saves(pair: Pair, tmp_path: Path) -> None:
    """Its nested config.json, and its own names of tensors when they are asked for."""
    source = pair.checkpoint.source
    for original in (True, False):
        directory = tmp_path / str(original)
        pair.theirs.save_pretrained(
            directory, save_original_format=original, max_shard_size="100KB"
        )
        index = json.loads((directory / "model.safetensors.index.json").read_text())
        flat = any(name.startswith("visual.") for name in index["weight_map"])
        assert flat == (original and not pair.checkpoint.config.is_qwen3)
        assert "text_config" in json.loads((directory / "config.json").read_text())
        for name in ("tokenizer.json", "preprocessor_config.json"):
            (directory / name).write_bytes((source / name).read_bytes())
        loaded = load_qwen(directory, jnp.float32)
        assert loaded.config == pair.checkpoint.config
        jax.tree.map(np.testing.assert_array_equal, loaded.state, pair.checkpoint.state)
