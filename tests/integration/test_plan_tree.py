"""The plan tree: several pictures after each plan, which share the plan's tokens and its cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_sampler import PROMPTS, assert_same, policy, sampler_of, teacher_forced
from test_sampler import SETTINGS as FLAT_SETTINGS

from gotr1_jax.aot.hlo import collectives
from gotr1_jax.errors import InputError
from gotr1_jax.parallel.mesh import make_mesh
from gotr1_jax.sampler.sampler import Rollout, row_keys
from gotr1_jax.sampler.token_batch import PromptBatch

__all__ = ["policy"]  # a fixture

# 4 captions of 2 plans with 3 pictures each.
K, M = 2, 3
SETTINGS = replace(FLAT_SETTINGS, plan_bucket=4, image_bucket=5)
ONE_BUCKET = replace(FLAT_SETTINGS, plan_bucket=7, image_bucket=9)
KEYS = row_keys(0, 4, jnp.arange(4), K * M)


def sample(
    policy, pictures: int = M, prompts=PROMPTS, keys=KEYS, settings=SETTINGS, **more
) -> Rollout:
    sampler = sampler_of(policy, settings, **more)
    params = sampler.prepare(nnx.split(policy)[1])
    return jax.device_get(sampler(params, prompts, keys, K * M, pictures))


@pytest.fixture(scope="module")
def tree(policy) -> Rollout:
    return sample(policy)


@contextmanager
def observed_image_loop(policy, settings, **more) -> Iterator[tuple[Any, list]]:
    """The image loop's program, and the shapes of the arguments of its calls."""
    sampler = sampler_of(policy, settings, **more)
    programs, calls = sampler.programs, []

    def image_bucket(*args):
        calls.append(jax.tree.map(lambda x: x if x.dtype == KEYS.dtype else shape_of(x), args))
        return programs.image_bucket(*args)

    sampler.programs = replace(programs, image_bucket=image_bucket)
    try:
        yield programs.image_bucket, calls
    finally:
        sampler.programs = programs


def shape_of(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def test_rows_of_a_plan_share_its_tokens_and_have_pictures_of_their_own(tree: Rollout) -> None:
    """Row (caption * K + plan) * M + picture."""
    rows = tree.rows
    for per_plan in (rows.plan_ids_BT, rows.plan_len_B, rows.plan_mask_BT, tree.plan_logp_BT):
        by_plan = per_plan.reshape(4 * K, M, -1)
        np.testing.assert_array_equal(by_plan, np.broadcast_to(by_plan[:, :1], by_plan.shape))
    plans = {tuple(ids) for ids in rows.plan_ids_BT[::M].tolist()}
    pictures = {tuple(ids) for ids in rows.image_ids_BU.tolist()}
    assert len(plans) == 4 * K and len(pictures) == 4 * K * M
    np.testing.assert_array_equal(rows.prompt_len_B, np.repeat(PROMPTS.len_P, K * M))


def test_logps_of_every_row_equal_teacher_forced_ones(policy, tree: Rollout) -> None:
    """With and without an unconditional branch."""
    alone = sample(policy, settings=replace(ONE_BUCKET, guidance=1.0))
    for rollout in (tree, alone):
        np.testing.assert_allclose(rollout.logp_BN, teacher_forced(policy, rollout), atol=1e-4)
        assert np.all(rollout.image_logp_BU < 0)


def test_a_tree_is_what_flat_sampling_draws_from_the_same_keys(policy, tree: Rollout) -> None:
    """Plans are those of flat samples with the index of the plan's first row, pictures those of
    flat rows after that plan, each with the row's own key."""
    sampler = sampler_of(policy, SETTINGS)
    params = sampler.prepare(nnx.split(policy)[1])
    plans = sampler.sample_plans(params, PROMPTS, KEYS[::M], K)
    np.testing.assert_array_equal(plans.rows.plan_ids_BT, tree.rows.plan_ids_BT[::M])
    np.testing.assert_array_equal(plans.plan_logp_BT, tree.plan_logp_BT[::M])
    images = sampler.sample_images(
        params, PROMPTS, jnp.asarray(tree.rows.plan_ids_BT), jnp.asarray(tree.rows.plan_len_B), KEYS
    )
    np.testing.assert_array_equal(images.rows.image_ids_BU, tree.rows.image_ids_BU)
    np.testing.assert_allclose(images.image_logp_BU, tree.image_logp_BU, atol=1e-4)


def test_samples_do_not_depend_on_the_rest_of_the_batch(policy, tree: Rollout) -> None:
    """Captions in another order: the same plans and pictures."""
    order = np.array([2, 0, 3, 1])
    prompts = PromptBatch(PROMPTS.ids_PC[order], PROMPTS.len_P[order])
    other = sample(policy, prompts=prompts, keys=row_keys(0, 4, jnp.asarray(order), K * M))
    chosen = (order[:, None] * K * M + np.arange(K * M)).reshape(-1)
    assert_same(jax.tree.map(lambda x: x[chosen], tree), other)


def test_the_cache_of_a_plan_is_in_memory_once(policy) -> None:
    """Of the arguments of the image loop: 8 rows of plans for 24 of pictures, with two branches."""
    with observed_image_loop(policy, SETTINGS) as (_, calls):
        sample(policy)
    _, context, _, state = calls[0]
    rows = [c.v_NKSh[0].shape[0] for c in (context.prompts.cache, context.plans, state.cache)]
    assert rows == [4, 4 * K, 2 * 4 * K * M]


def test_eight_devices_sample_the_same_and_exchange_no_cache(policy, tree: Rollout) -> None:
    """A caption, its 2 plans and their 6 pictures on each device; every caption comes twice."""
    prompts = PromptBatch(jnp.tile(PROMPTS.ids_PC, (2, 1)), jnp.tile(PROMPTS.len_P, 2))
    keys, mesh = jnp.concatenate([KEYS, KEYS]), make_mesh(8)
    with observed_image_loop(policy, ONE_BUCKET, mesh=mesh) as (program, calls):
        rollout = sample(policy, prompts=prompts, keys=keys, settings=ONE_BUCKET, mesh=mesh)
    assert_same(jax.tree.map(lambda x: np.concatenate([x, x]), tree), rollout)
    assert set(collectives(program.lower(*calls[0]).compile().as_text())) <= {"all-reduce"}


def test_plans_and_heads_on_eight_devices(policy, tree: Rollout) -> None:
    """2 plans on each of 4 x 2 devices."""
    assert_same(tree, sample(policy, settings=ONE_BUCKET, mesh=make_mesh(2, 2, 2)))


def test_trees_that_do_not_divide_are_refused(policy) -> None:
    """Pictures that do not divide the samples, and plans that do not divide over the mesh."""
    with pytest.raises(InputError, match="4 images a plan do not divide 6 samples"):
        sample(policy, 4)
    with pytest.raises(InputError, match="0 images a plan"):
        sample(policy, 0)
    with pytest.raises(InputError, match=r"4 plans \(4 captions of 6 samples, 6 a plan\)"):
        sample(policy, 6, mesh=make_mesh(8))
