"""The image tokenizer's quantizer and losses by hand, and its training job in small."""

from __future__ import annotations

import json
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
from gotr1_jax.shapes.dataset import ShapesSource
from gotr1_jax.shapes.vocabulary import IMAGE_SIZE
from gotr1_jax.trainer.config import OptimizerConfig
from gotr1_jax.vq import losses as vq_loss
from gotr1_jax.vq.config import CropConfig, VqLossConfig, VqTrainConfig
from gotr1_jax.vq.data import batch_of_step, draw_scenes, sample_variant
from gotr1_jax.vq.evaluation import evaluate, judge_images, measure_stability
from gotr1_jax.vq.train import train_vq
from gotr1_jax.vq.update import init_state, make_step, pair_consistency

TINY = VQConfig(16, 4, 4, 8, (1, 2, 2, 2), (1, 2, 2, 2), 1, 2)
CROP = 16
JOB = VqTrainConfig(
    run_dir="run",
    model=TINY,
    steps=30,
    batch_size=8,
    images=64,
    eval_images=8,
    quantize_from=10,
    crop=CropConfig(size=CROP, steps=26, batch_size=8),
    weights=VqLossConfig(edges=0.5, consistency=1.0),
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
    # The one encoding that is badly covered is drawn first, and the only unused code gets it,
    # whatever its number.
    np.testing.assert_allclose(moved[1], [-0.6, 0.8])
    first, _ = vq_loss.restart_unused(
        codebook, jnp.asarray([0.05, 0.95]), latents, nearest, jax.random.key(0),
        below=0.2, fresh=0.5,
    )  # fmt: skip
    np.testing.assert_allclose(first, [[-0.6, 0.8], [0.0, 1.0]])
    kept, _ = vq_loss.restart_unused(
        codebook, jnp.asarray([0.0, 0.0]), latents, nearest, jax.random.key(0), below=0.0, fresh=0.5
    )
    np.testing.assert_array_equal(kept, codebook)


def test_more_unused_codes_than_encodings():
    codebook, latents = jnp.eye(3), jnp.asarray([[0.0, 0.6, 0.8]])
    moved, usage = vq_loss.restart_unused(
        codebook, jnp.zeros(3), latents, codebook[2:], jax.random.key(0), below=0.3, fresh=0.3
    )
    np.testing.assert_allclose(moved, [[0.0, 0.6, 0.8], [0, 1, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(usage, [0.1, 0, 0])


def test_edges_are_the_pixels_on_both_sides_and_count_alone():
    image = np.zeros((1, 3, 4, 3), np.float32)
    image[:, :, 2:, 1] = 0.5  # an edge between columns 1 and 2
    image[:, 2] += 0.1  # shading: 13 levels of 255
    edges = vq_loss.edge_pixels(jnp.asarray(image))
    np.testing.assert_array_equal(edges[0], [[False, True, True, False]] * 3)
    # Wrong by .2 at an edge pixel in one of 3 channels, and anywhere else.
    wrong = image.copy()
    wrong[0, 0, 1, 0] += 0.2
    wrong[0, :, 0] += 1.0
    l1, l2 = vq_loss.pixel_losses(jnp.asarray(wrong), jnp.asarray(image), edges)
    assert float(l1) == pytest.approx(0.2 / 18) and float(l2) == pytest.approx(0.04 / 18)
    none = vq_loss.pixel_losses(jnp.asarray(wrong), jnp.asarray(image), jnp.zeros_like(edges))
    assert [float(x) for x in none] == [0.0, 0.0]


def test_cells_are_equal_with_their_margin_and_only_they_are_pulled_together():
    first = np.full((1, 12, 12, 3), 100, np.uint8)
    second = first.copy()
    second[0, 5, 4, 2] = 200  # in cell (1, 1), 1 pixel from cells (0, 1) and (1, 0)
    second[0, 11, 11] += 1  # as good as equal
    pair = jnp.asarray(first), jnp.asarray(second)
    equal = np.asarray(vq_loss.equal_cells(*pair, cell=4, margin=0))
    np.testing.assert_array_equal(equal[0], [[True] * 3, [True, False, True], [True] * 3])
    wide = np.asarray(vq_loss.equal_cells(*pair, cell=4, margin=1))
    np.testing.assert_array_equal(wide[0], [[True] * 3, [False, False, True], [True] * 3])

    a = jnp.zeros((1, 1, 2, 2)).at[..., 0].set(1.0)  # (1, 0) in both cells
    b = jnp.asarray([[[[0.6, 0.8], [0.0, 1.0]]]])
    mask = jnp.asarray([[[True, False]]])
    # ((.4)^2 + (.8)^2) / 2 of the one equal cell; the gradients are +-(a - b).
    assert float(vq_loss.consistency_loss(a, b, mask)) == pytest.approx(0.4)
    for side, sign in ((0, 1), (1, -1)):
        grad = jax.grad(vq_loss.consistency_loss, argnums=side)(a, b, mask)
        np.testing.assert_allclose(grad[0, 0], [[sign * 0.4, sign * -0.8], [0, 0]], atol=1e-6)
    assert float(vq_loss.consistency_loss(a, b, jnp.zeros_like(mask))) == 0.0


def test_rows_of_a_pair_belong_together():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[0, :, :2] = images[1, :, 2:] = 9  # the pair differs everywhere
    other = np.full((2, 4, 4, 3), 50, np.uint8)
    latents = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.8]]).reshape(4, 1, 1, 2)
    batch = jnp.asarray(np.concatenate([images, other]))
    assert float(pair_consistency(batch, latents, 4, 0)) == pytest.approx(0.4)


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


def test_a_few_steps_lower_the_loss():
    data = draw_scenes("train", 0, 64, variants=True)
    step_fn, state = make_step(JOB), jax.jit(partial(init_state, JOB))()
    errors = []
    for step in range(1, 27):
        batch = batch_of_step(data, JOB, step)
        assert batch.shape == (8, CROP, CROP, 3)
        state, metrics = step_fn(state, batch)
        errors.append(float(metrics.l1))
    assert np.mean(errors[-3:]) < 0.6 * np.mean(errors[:3])
    assert float(metrics.consistency) > 0

    # An update that is not finite changes nothing but the counts.
    state = replace(state, params=jax.tree.map(lambda x: x * np.nan, state.params))
    kept = jax.device_get((state.opt_state, state.usage_I))
    state, metrics = step_fn(state, batch)
    assert not np.isfinite(metrics.loss)
    assert int(state.skipped_in_a_row) == 1 and int(state.step) == 27
    for was, now in zip(jax.tree.leaves(kept), jax.tree.leaves((state.opt_state, state.usage_I))):
        np.testing.assert_array_equal(was, now)


def test_batches_depend_on_the_step_alone_and_are_pairs():
    data = draw_scenes("train", 0, 8, variants=True)
    for step, side in ((3, CROP), (27, IMAGE_SIZE)):
        batch = batch_of_step(data, JOB, step)
        assert batch.shape == (8, side, side, 3)
        np.testing.assert_array_equal(batch, batch_of_step(data, JOB, step))
        np.testing.assert_array_equal(batch[5:7], batch_of_step(data, JOB, step, np.arange(5, 7)))
    # Full images: each row pair is a scene and its variant.
    places = [[np.array_equal(data.images[n, 0], image) for n in range(8)] for image in batch]
    for k in range(0, 8, 2):
        scene = places[k].index(True)
        np.testing.assert_array_equal(data.images[scene, 1], batch[k + 1])
    single = draw_scenes("train", 0, 8, variants=False)
    np.testing.assert_array_equal(single.images[:, 0], data.images[:, 0])
    assert batch_of_step(single, JOB, 3).shape == batch_of_step(data, JOB, 3).shape


def test_crops_on_objects_have_something_to_see():
    data = draw_scenes("train", 0, 8, variants=False)
    for share, plain in ((0.0, True), (1.0, False)):
        job = replace(JOB, crop=replace(JOB.crop, on_objects=share), weights=VqLossConfig())
        crops = np.concatenate([batch_of_step(data, job, step) for step in range(1, 9)])
        ranges = crops.max((1, 2, 3)).astype(int) - crops.min((1, 2, 3))
        assert bool((ranges == 0).any()) == plain


def test_a_variant_differs_and_has_objects():
    source = ShapesSource("train", 40, 1)
    scenes = [source[i].scene for i in range(40)]
    rng = np.random.default_rng(0)
    for scene, other in zip(scenes[:-1], scenes[1:]):
        variant = sample_variant(rng, scene, other)
        assert variant.objects and variant.objects != scene.objects
        new = [obj for obj in variant.objects if obj not in scene.objects]
        assert len(new) <= 1 and all(obj in other.objects for obj in new)
        assert len(variant.objects) <= len(scene.objects) + 1


def test_stability_counts_codes_of_equal_cells():
    images = np.full((1, 2, 2 * 4, 2 * 4, 3), 240, np.uint8)
    images[0, :, 0, 0] = 0  # something in cell 0 of both
    images[0, 1, 7, 7] = 0  # cell 3 is not equal
    ids = np.array([[[5, 6, 7, 8], [1, 6, 7, 9]]])
    found = measure_stability(images, ids, cell=4, margin=0)
    assert found == {"unstable_frac": pytest.approx(1 / 3), "unstable_frac_objects": 1.0}
    found = measure_stability(images, ids[:, [0, 0]], cell=4, margin=0)
    assert found == {"unstable_frac": 0.0, "unstable_frac_objects": 0.0}
    nothing = measure_stability(np.stack([images[0, :1], 255 - images[0, :1]], 1), ids, 4, 0)
    assert nothing == {"unstable_frac": 0.0, "unstable_frac_objects": 0.0}


def test_the_judge_sees_nothing_wrong_in_rendered_images():
    data = draw_scenes("heldout", 0, 8, variants=False)
    error, overlap = judge_images(data.examples, data.images[:, 0])
    assert error == 0.0 and overlap > 0.95
    error, overlap = judge_images(data.examples, np.full_like(data.images[:, 0], 240))
    assert (error, overlap) == (1.0, 0.0)


def test_job_writes_what_the_next_job_reads(tmp_path: Path):
    config = replace(JOB, run_dir=str(tmp_path / "run"), steps=4, crop=CropConfig(CROP, 4, 8))
    out = train_vq(config)
    loaded = load_vq(out)
    assert loaded.config == TINY and loaded.image_size == IMAGE_SIZE
    assert (tmp_path / "run" / "reconstructions.png").is_file()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["psnr"] > 3 and summary["judge_error_truth"] == 0
    assert 0 <= summary["box_iou"] < summary["box_iou_truth"] and summary["judge_error"] == 1
    data = draw_scenes("heldout", 0, 8, variants=True)
    measured, decoded = evaluate(TINY, loaded.state, data, JOB.weights.consistency_margin)
    assert decoded.shape == (8, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert {name: summary[name] for name in measured} == pytest.approx(measured)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"crop.size is 20.*multiple of the downsampling 8"):
        replace(JOB, crop=CropConfig(size=20))
    with pytest.raises(InputError, match=r"crop.batch_size is 7.*made of pairs.*even"):
        replace(JOB, crop=CropConfig(CROP, 4, 7))
    replace(JOB, crop=CropConfig(CROP, 4, 7), weights=VqLossConfig())
