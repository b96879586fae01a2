"""The image tokenizer's quantizer and losses by hand, and its training job in small."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import compiled_once

from gotr1_jax.convert.image_tokenizer import load_vq
from gotr1_jax.errors import InputError
from gotr1_jax.models.config import VQConfig
from gotr1_jax.models.vq import VQModel, VQQuantizer, unit
from gotr1_jax.parallel.config import MeshConfig
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.vq import losses as vq_loss
from gotr1_jax.vq.config import CropConfig, VqTrainConfig
from gotr1_jax.vq.train import (
    batch_of_step,
    draw_images,
    evaluate,
    init_state,
    make_step,
    train_vq,
)

TINY = VQConfig(16, 4, 4, 8, (1, 2, 2, 2), (1, 2, 2, 2), 1, 2)
JOB = VqTrainConfig(
    run_dir="run",
    model=TINY,
    steps=30,
    batch_size=8,
    images=64,
    eval_images=8,
    quantize_from=10,
    crop=CropConfig(size=16, steps=26, batch_size=8),
    optimizer=OptimizerConfig(learning_rate=5e-3, schedule="constant", warmup_steps=2),
    mesh=MeshConfig(data=1),
    log_every=5,
)


@pytest.fixture(autouse=True, scope="module")
def one_compilation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The steps alone and the job are the same program."""
    with compiled_once(tmp_path_factory.getbasetemp() / "programs"):
        yield


def quantizer(rows: list[list[float]]) -> VQQuantizer:
    table = jnp.asarray(rows, jnp.float32)
    cfg = VQConfig(codebook_size=table.shape[0], code_dim=table.shape[1])
    module = VQQuantizer(cfg, rngs=nnx.Rngs(0), dtype=jnp.float32)
    module.embedding[...] = table
    return module


def test_nearest_code_is_that_of_the_largest_cosine():
    # By plain distance (2, 0.5) is nearest to (1, 1); by direction it is nearest to (9, 0).
    module = quantizer([[9.0, 0.0], [0.0, 0.3], [1.0, 1.0]])
    out = module(jnp.asarray([[[[2.0, 0.5], [-0.1, 5.0]], [[0.3, 0.3], [7.0, -1.0]]]]))
    np.testing.assert_array_equal(out.ids_Bhw, [[[0, 1], [2, 0]]])
    half = math.sqrt(0.5)
    np.testing.assert_allclose(
        out.codes_BhwZ[0].reshape(-1, 2), [[1, 0], [0, 1], [half, half], [1, 0]], atol=1e-6
    )
    np.testing.assert_allclose(
        module.lookup(jnp.asarray([2, 1])), [[half, half], [0, 1]], atol=1e-6
    )


def test_gradient_goes_straight_through_to_the_encodings():
    module = quantizer([[1.0, 0.0], [0.0, 1.0]])
    z = jnp.asarray([[[[3.0, 4.0]]]])
    weight = jnp.asarray([2.0, -1.0])
    through = jax.grad(lambda z: (module(z).codes_BhwZ * weight).sum())(z)
    # As if the codes were the unit vector u = z / |z| itself: (w - u (u.w)) / |z|, with
    # u = (.6, .8), u.w = .4, |z| = 5.
    np.testing.assert_allclose(through, [[[[(2 - 0.24) / 5, (-1 - 0.32) / 5]]]], atol=1e-6)


def test_zero_vector_has_a_finite_gradient():
    assert np.all(np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((3,)))))


def test_losses_by_hand_and_which_side_they_move():
    latents, nearest = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.6, 0.8]])
    # ((.4)^2 + (.8)^2) / 2 = .4, and its derivative (a - b) of the first.
    for loss, moved in ((vq_loss.commitment_loss, 0), (vq_loss.codebook_loss, 1)):
        assert float(loss(latents, nearest)) == pytest.approx(0.4)
        grads = jax.grad(loss, argnums=(0, 1))(latents, nearest)
        sign = 1 if moved == 0 else -1
        np.testing.assert_allclose(grads[moved], [[sign * 0.4, sign * -0.8]], atol=1e-6)
        np.testing.assert_array_equal(grads[1 - moved], [[0.0, 0.0]])
    l1, l2 = vq_loss.pixel_losses(jnp.asarray([1.0, -1.0]), jnp.asarray([0.0, 1.0]))
    assert (float(l1), float(l2)) == (1.5, 2.5)
    assert float(vq_loss.psnr(jnp.asarray(0.04))) == pytest.approx(20.0)


def test_counts_and_perplexity():
    counts = vq_loss.code_counts(jnp.asarray([[0, 2], [2, 2]]), 4)
    np.testing.assert_array_equal(counts, [1, 0, 3, 0])
    assert float(vq_loss.perplexity(counts)) == pytest.approx(0.25**-0.25 * 0.75**-0.75)
    assert float(vq_loss.perplexity(jnp.full((8,), 5.0))) == pytest.approx(8.0)


def test_only_unused_codes_move_and_only_to_badly_covered_encodings():
    codebook = jnp.eye(2)
    latents = jnp.asarray([[1.0, 0.0]] * 5 + [[-0.6, 0.8]])
    nearest = jnp.asarray([[1.0, 0.0]] * 5 + [[0.0, 1.0]])
    moved, usage = vq_loss.restart_unused(
        codebook, jnp.asarray([0.95, 0.05]), latents, nearest, jax.random.key(0),
        below=0.2, fresh=0.5,
    )  # fmt: skip
    assert np.array_equal(moved[0], [1.0, 0.0])
    np.testing.assert_allclose(usage, [0.95, 0.25])
    # The draw is without replacement, so code 1 gets the far encoding or a covered one; over
    # many draws the one place that is badly covered is drawn first, for code 0's turn or 1's.
    first, _ = vq_loss.restart_unused(
        codebook, jnp.asarray([0.05, 0.95]), latents, nearest, jax.random.key(0),
        below=0.2, fresh=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(first, [[-0.6, 0.8], [0.0, 1.0]])
    kept, _ = vq_loss.restart_unused(
        codebook, jnp.asarray([0.0, 0.0]), latents, nearest, jax.random.key(0), below=0.0, fresh=0.5
    )
    np.testing.assert_array_equal(kept, codebook)


def test_images_shrink_by_the_downsampling_whatever_the_shape():
    def there_and_back(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = VQModel(TINY, rngs=nnx.Rngs(0))
        ids = model.encode_ids(pixels)
        return ids, model.decode_ids(ids, (2, 4))

    ids, pixels = jax.eval_shape(there_and_back, jnp.zeros((2, 16, 32, 3)))
    assert ids.shape == (2, 2 * 4) and ids.dtype == jnp.int32
    assert pixels.shape == (2, 16, 32, 3)


def test_every_parameter_names_its_axes():
    state = nnx.split(nnx.eval_shape(lambda: VQModel(TINY, rngs=nnx.Rngs(0))))[1]
    for path, param in nnx.to_flat_state(state):
        assert len(param.get_metadata("axes")) == len(param.shape), path


def test_a_few_steps_lower_the_loss_and_windows_follow_the_grid():
    images = draw_images("train", 0, 64)
    step_fn, state = make_step(JOB), jax.jit(partial(init_state, JOB))()
    errors = []
    for step in range(1, 27):
        batch = batch_of_step(images, JOB, step)
        assert batch.shape == (8, 16, 16, 3)
        np.testing.assert_array_equal(batch, batch_of_step(images, JOB, step))
        state, metrics = step_fn(state, batch)
        errors.append(float(metrics.l1))
    assert batch_of_step(images, JOB, 27).shape == (8, 64, 64, 3)
    assert np.mean(errors[-3:]) < 0.6 * np.mean(errors[:3])

    # An update that is not finite changes nothing but the counts.
    state = replace(state, params=jax.tree.map(lambda x: x * np.nan, state.params))
    kept = jax.device_get((state.opt_state, state.usage_I))
    state, metrics = step_fn(state, batch)
    assert not np.isfinite(metrics.loss)
    assert int(state.skipped_in_a_row) == 1 and int(state.step) == 27
    for was, now in zip(jax.tree.leaves(kept), jax.tree.leaves((state.opt_state, state.usage_I))):
        np.testing.assert_array_equal(was, now)


def test_job_writes_what_the_next_job_reads(tmp_path: Path):
    config = replace(JOB, run_dir=str(tmp_path / "run"), steps=4, crop=CropConfig(16, 4, 8))
    out = train_vq(config)
    loaded = load_vq(out)
    assert loaded.config == TINY and loaded.image_size == 64
    assert (tmp_path / "run" / "summary.json").is_file()
    assert (tmp_path / "run" / "reconstructions.png").is_file()
    summary, decoded = evaluate(TINY, loaded.state, draw_images("heldout", 0, 8))
    assert decoded.shape == (8, 64, 64, 3) and summary["psnr"] > 3


def test_a_window_that_does_not_fit_the_grid_is_refused():
    with pytest.raises(InputError, match=r"crop.size is 20.*multiple of the downsampling 8"):
        replace(JOB, crop=CropConfig(size=20))
