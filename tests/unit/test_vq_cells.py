"""Codes that are clusters of what scenes show in a cell: descriptions, clusters, loss, the job."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gotr1_jax.data.token_cache import ImageTokenCache
from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.models.config import VQConfig
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.plan import Box
from gotr1_jax.shapes.captions import CaptionSpec, ObjectSpec
from gotr1_jax.shapes.cells import (
    CELL_CODES_FILE,
    CellCodes,
    SceneCodes,
    cluster_cells,
    describe_cells,
)
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.scenes import Scene, SceneObject
from gotr1_jax.vq.config import CellCodesConfig, CropConfig, RestartConfig, VqTrainConfig
from gotr1_jax.vq.data import batch_of_codes, code_cells, draw_scenes
from gotr1_jax.vq.losses import code_nats
from gotr1_jax.vq.train import train_vq

CELL = 16
JOB = VqTrainConfig(
    run_dir="run",
    model=VQConfig(32, 4, 4, 8, (1, 1, 1, 2, 2), (1, 1, 1, 2, 2), 1, 2),
    steps=4,
    batch_size=4,
    images=12,
    eval_images=8,
    crop=CropConfig(steps=0),
    restart=RestartConfig(steps=0),
    cells=CellCodesConfig(
        images=8, iterations=3, mixed_share=0, depth_weight=1, last_steps_with_encoder=2
    ),
    mesh=MeshConfig(data=1),
    log_every=1,
)


def scene(*objects: tuple[str, str, tuple[int, int, int, int]]) -> Scene:
    drawn = tuple(
        SceneObject(ObjectSpec(shape, color, "small"), Box(*box)) for color, shape, box in objects
    )
    return Scene(CaptionSpec(tuple(obj.spec for obj in drawn)), drawn)


def test_a_cell_is_described_by_colors_and_the_shape_that_covers_most():
    # 250 thousandths are 32 pixels: the square covers cells (2..3, 2..3) of 8 x 8 and no other one.
    square = scene(("red", "square", (250, 250, 500, 500)))
    features, drawn = describe_cells(square, CELL, 2.0)
    assert features.shape == (64, 6 * 64 + 6) and drawn.shape == (64,)
    full = features.reshape(8, 8, -1)
    red, others = full[..., :64], full[..., 64:384]
    assert drawn.reshape(8, 8)[2:4, 2:4].all() and not others.any()
    assert red[2:4, 2:4].mean() > 0.9 and not red[5:].any()
    # The blur reaches the next cell by a little; its shape is not known from it.
    np.testing.assert_array_equal(full[2, 2, 384:], [0, 2, 0, 0, 0, 0])
    assert not full[7, 7].any()


def test_what_is_hidden_is_not_described():
    front, back = ("red", "square", (250, 250, 500, 500)), ("blue", "square", (250, 250, 500, 500))
    both, alone = (describe_cells(scene(*objs), CELL, 1.0) for objs in ([front, back], [front]))
    np.testing.assert_allclose(both[0], alone[0], atol=2e-3)


def test_codes_do_not_depend_on_objects_elsewhere():
    near, far = ("green", "star", (50, 60, 280, 290)), ("blue", "heart", (600, 600, 900, 905))
    one, two = (describe_cells(scene(*objs), CELL, 1.0)[0] for objs in ([near], [near, far]))
    np.testing.assert_array_equal(one.reshape(8, 8, -1)[:4, :4], two.reshape(8, 8, -1)[:4, :4])


def test_clusters_are_the_groups_and_their_codes_begin_near_their_like():
    rng = np.random.default_rng(0)
    groups = np.zeros((3, 6 * 4 + 6))
    groups[[0, 1, 1, 2], [0, 0, 2, 29]] = 9, 9, 1, 9
    cells = np.repeat(groups, 20, axis=0) + rng.normal(0, 0.01, (60, 30))
    codes = CellCodes(cluster_cells(cells, 3, 8, seed=0), CELL, 1.0)
    order = np.lexsort(np.round(codes.centres.T))
    np.testing.assert_allclose(codes.centres[order], groups[np.lexsort(groups.T)], atol=0.02)
    found = codes.assign(cells, np.repeat([True, True, False], 20))
    assert len(set(found[:20])) == len(set(found[20:40])) == 1 and not found[40:].any()
    assert 0 not in found[:40]
    vectors = codes.embedding(3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    a, b, c = vectors[codes.assign(groups.astype(np.float32), np.ones(3, bool))]
    assert a @ b > max(a @ c, b @ c)
    with pytest.raises(ValueError, match="5 cells cannot make 6 clusters"):
        cluster_cells(cells[:5], 6, 2, seed=0)


def test_rare_cells_of_several_colors_get_clusters_of_their_own():
    pair = [("red", "square", (250, 250, 450, 450)), ("blue", "circle", (400, 250, 700, 550))]
    described = [describe_cells(scene(*objs), CELL, 1.0) for objs in (pair, pair[:1], pair[1:])]
    cells = np.concatenate([features[drawn] for features, drawn in described])
    centres = cluster_cells(cells, 10, 5, seed=0, mixed_share=0.2)
    several = np.sort(centres[:, :384].reshape(10, 6, 64).mean(2), axis=1)[:, -2] > 0.03
    np.testing.assert_array_equal(several, [False] * 8 + [True] * 2)


def test_codes_are_kept_in_a_file(tmp_path: Path):
    codes = CellCodes(np.random.default_rng(0).normal(size=(5, 390)).astype(np.float32), CELL, 1.5)
    codes.save(tmp_path / "codes.npz")
    again = CellCodes.load(tmp_path / "codes.npz")
    np.testing.assert_array_equal(again.centres, codes.centres)
    assert again.digest == codes.digest and (again.cell, again.shape_weight) == (CELL, 1.5)
    assert replace(codes, shape_weight=1.0).digest != codes.digest
    (tmp_path / "broken.npz").write_bytes((tmp_path / "codes.npz").read_bytes()[:100])
    with pytest.raises(InputError, match=r"broken\.npz does not hold codes"):
        CellCodes.load(tmp_path / "broken.npz")


def test_examples_are_trained_on_their_true_codes(tmp_path: Path):
    centres = np.random.default_rng(0).normal(size=(31, 390)).astype(np.float32)
    source, codes = ShapesSource("train", 5), CellCodes(centres, CELL, 1.2)
    cache = ImageTokenCache(tmp_path, codes.digest, lambda ids: ids)
    ids = cache.ids(SceneCodes(source, codes))
    assert ids.shape == (5, 64) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids[3], codes.of_scene(source[3].scene))
    assert ids.min() == 0 and ids.max() > 0


def test_nats_of_the_true_codes_by_hand():
    codebook = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    latents = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    nats, right = code_nats(latents, codebook, jnp.asarray([0, 1, 1]), 1.0, 0.5)
    near, far = np.log(1 + np.exp(-1)), np.log(1 + np.exp(1))
    np.testing.assert_allclose(nats, (0.5 * near + near + far) / 2.5, rtol=1e-6)
    assert float(right) == 0.5  # of the two cells that are not ground


def test_a_batch_is_its_rows_and_carries_the_true_codes():
    data, codes = code_cells(
        draw_scenes("train", 0, 12, variants=False), JOB.cells or CellCodesConfig(), JOB.model, 0
    )
    images, true = batch_of_codes(data, JOB, 3, np.arange(4))
    assert images.shape == (4, 128, 128, 3) and true.shape == (4, 64) and true.max() < 32
    part = batch_of_codes(data, JOB, 3, np.arange(1, 3))
    np.testing.assert_array_equal(part[0], images[1:3])
    np.testing.assert_array_equal(part[1], true[1:3])
    covered = (images.reshape(4, 8, CELL, 8, CELL, 3) < 235).any(axis=5).mean(axis=(2, 4))
    assert (true.reshape(4, 8, 8)[covered > 0.2] > 0).all()
    # Ground has no neighbour that is drawn: the blur reaches no farther.
    beside = np.pad(covered, ((0, 0), (1, 1), (1, 1)))
    beside = sum(beside[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3))
    assert (beside == 0).any() and not true.reshape(4, 8, 8)[beside == 0].any()
    assert codes.centres.shape == (31, 390) and codes.cell == CELL


def test_what_codes_of_cells_exclude_is_refused():
    for change, key in (
        ({"crop": CropConfig(steps=3)}, "crop.steps"),
        ({"restart": RestartConfig(steps=3)}, "restart.steps"),
        ({"cells": CellCodesConfig(images=13)}, "cells.images"),
    ):
        with pytest.raises(ConfigError, match=key):
            replace(JOB, **change)
    many = replace(JOB.model, codebook_size=4096)
    with pytest.raises(InputError, match="cells.images is 8: .* cannot make"):
        code_cells(draw_scenes("train", 0, 8, False), CellCodesConfig(images=8), many, 0)


def test_the_job_names_and_draws_the_codes(tmp_path: Path):
    out = train_vq(replace(JOB, run_dir=str(tmp_path / "run")))
    lines = [json.loads(x) for x in (out.parent / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == JOB.steps and all(line["nats"] > 0 for line in lines)
    assert all(0 <= line["accuracy"] <= 1 and line["psnr"] > 0 for line in lines)
    summary = json.loads((out.parent / "summary.json").read_text())
    assert summary["judge_error_truth"] == 0
    assert len(CellCodes.load(out / CELL_CODES_FILE).centres) == 31
