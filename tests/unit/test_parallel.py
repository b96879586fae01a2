"""The mesh, and the shardings of parameters on it."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tiny import STEP_MODEL

from gotr1_jax.errors import ConfigError, InputError
from gotr1_jax.models.config import JANUS_PRO_7B, LoraConfig
from gotr1_jax.models.janus import abstract_policy
from gotr1_jax.parallel.config import MeshConfig, MeshSizesConfig, SplitMeshConfig
from gotr1_jax.parallel.mesh import job_mesh, make_mesh, rollout_mesh, row_multiple
from gotr1_jax.parallel.placement import check_rows, move_rows, move_to_mesh
from gotr1_jax.parallel.sharding import PARAMETER_RULES, partition_spec, state_shardings


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(2, 2, 2)


def test_mesh_takes_what_is_left():
    assert dict(make_mesh(-1, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    # Fewer devices than there are: the first ones.
    small = make_mesh(1, 2, 1)
    assert list(small.devices.flat) == jax.devices()[:2]
    assert row_multiple(make_mesh(2, 2, 2)) == 4


@dataclass(frozen=True)
class Chip:
    """As much of a device as a mesh asks for."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5e"


def test_devices_of_a_process_are_adjacent():
    # Four hosts of 2 x 2 chips in a slice of 4 x 4, numbered row by row.
    chips = [Chip(4 * y + x, 2 * (y // 2) + x // 2) for y in range(4) for x in range(4)]
    grid = make_mesh(2, 2, 4, devices=chips).devices
    assert [[{chip.process_index for chip in host} for host in half] for half in grid] == [
        [{0}, {1}],
        [{2}, {3}],
    ]
    assert [chip.id for chip in grid[0, 0]] == [0, 1, 4, 5]


def two_slices(second: int = 8) -> list[Chip]:
    """Slices of two hosts of four chips, listed host by host of both in turn."""
    chips = [
        Chip(8 * s + 4 * h + i, 2 * s + h, s) for h in (0, 1) for s in (0, 1) for i in range(4)
    ]
    return [chip for chip in chips if chip.id < 8 + second]


def test_data_alone_crosses_slices():
    for sizes in ((2, 8, 1), (-1, 4, 2), (4, -1, 4)):
        mesh = make_mesh(*sizes, devices=two_slices())
        for of_data in np.split(mesh.devices, 2):
            assert len({chip.slice_index for chip in of_data.flat}) == 1, sizes
        assert [chip.process_index for chip in mesh.devices.flat] == sorted([0, 1, 2, 3] * 4)
    # As JAX's own function lays slices out; a TPU's coordinates are left aside.
    plain = [replace(chip, platform="cpu") for chip in two_slices()]
    theirs = create_hybrid_device_mesh((1, 4, 2), (2, 1, 1), plain)
    ours = make_mesh(2, 4, 2, two_slices()).devices
    assert [chip.id for chip in ours.flat] == [chip.id for chip in theirs.flat]


def test_other_axes_cross_slices_if_asked():
    with pytest.raises(InputError, match="data does not divide over 2 slices .* mesh.slices to 1"):
        make_mesh(1, 16, 1, two_slices())
    assert make_mesh(1, 16, 1, two_slices(), slices=1).shape["fsdp"] == 16
    with pytest.raises(InputError, match="mesh.slices is 4, but the devices are in 2 slices"):
        make_mesh(4, 4, 1, two_slices(), slices=4)
    with pytest.raises(InputError, match="2 slices of equal size"):
        make_mesh(2, 6, 1, two_slices(second=4))
    # Devices that know no slices are divided as they come.
    with pytest.raises(InputError, match="data does not divide over 2 slices"):
        make_mesh(1, 8, 1, slices=2)
    grid = job_mesh(MeshConfig(data=2, fsdp=4, slices=2)).devices
    assert list(grid[0].flat) == jax.devices()[:4]


def test_rollouts_have_devices_of_their_own():
    rollout = MeshSizesConfig(data=2, tensor=2)
    config = SplitMeshConfig(fsdp=2, rollout=rollout)
    trains, samples = job_mesh(config), rollout_mesh(config)
    assert dict(trains.shape) == {"data": 2, "fsdp": 2, "tensor": 1}
    assert dict(samples.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
    assert [*trains.devices.flat, *samples.devices.flat] == jax.devices()
    given = replace(config, train=MeshSizesConfig(fsdp=4))
    assert dict(job_mesh(given).shape) == {"data": 1, "fsdp": 4, "tensor": 1}
    assert rollout_mesh(SplitMeshConfig()) is None and rollout_mesh(MeshConfig()) is None
    # Two processes give two devices each.
    chips = [Chip(i, i // 4, platform="cuda") for i in range(8)]
    assert [chip.id for chip in job_mesh(config, chips).devices.flat] == [0, 1, 4, 5]
    assert [chip.id for chip in rollout_mesh(config, chips).devices.flat] == [2, 3, 6, 7]
    for size, message in ((3, "a multiple of 2"), (8, "keeps some to train with")):
        with pytest.raises(InputError, match=f"mesh.rollout takes {size} of 8 devices.*{message}"):
            job_mesh(SplitMeshConfig(rollout=MeshSizesConfig(data=size)), chips)
    with pytest.raises(InputError, match="mesh.rollout on TPUs needs one process"):
        rollout_mesh(config, [replace(chip, platform="tpu") for chip in chips])
    with pytest.raises(ConfigError, match="mesh.train is given and mesh.rollout is null"):
        SplitMeshConfig(train=rollout).check()


def test_arrays_move_to_another_mesh():
    config = SplitMeshConfig(data=1, fsdp=4, rollout=MeshSizesConfig(data=2, tensor=2))
    trains, samples = job_mesh(config), rollout_mesh(config)
    x = jax.device_put(np.arange(32.0).reshape(8, 4), NamedSharding(trains, PartitionSpec("fsdp")))
    there = NamedSharding(samples, PartitionSpec(None, "tensor"))
    (moved,) = move_to_mesh([x], [there])
    assert moved.sharding == there
    np.testing.assert_array_equal(moved, x)
    rows = move_rows({"x": moved}, trains)["x"]
    assert rows.sharding == NamedSharding(trains, PartitionSpec(("data", "fsdp")))
    assert move_rows({"x": rows}, trains)["x"] is rows


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((-1, -1, 1), "at most one is -1"),
        ((0, 1, 1), "sizes are 1 or more"),
        ((-2, 1, 1), "sizes are 1 or more"),
        ((-1, 3, 1), "does not divide the 8 devices"),
        ((4, 2, 2), "needs 16 devices, there are 8"),
    ],
)
def test_impossible_meshes_are_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        make_mesh(*sizes)


def test_rows_that_do_not_divide(mesh):
    check_rows(8, mesh, "update.micro_batch")
    with pytest.raises(InputError, match="update.micro_batch is 6, .* 4 row shards"):
        check_rows(6, mesh, "update.micro_batch")


def test_partition_spec(mesh):
    rules = PARAMETER_RULES
    spec = partition_spec(("embed", "heads"), (16, 8), rules, mesh)
    assert spec == PartitionSpec("fsdp", "tensor")
    # A leading dimension without a name is the stack of layers.
    spec = partition_spec(("mlp", "embed"), (3, 8, 16), rules, mesh)
    assert spec == PartitionSpec(None, "tensor", "fsdp")
    assert partition_spec(("lora_rank",), (3,), rules, mesh) == PartitionSpec(None)


@pytest.mark.parametrize(
    "axes, shape, message",
    [
        (("embed", "wings"), (4, 4), "no sharding rule for the axis 'wings'"),
        (("heads", "mlp"), (4, 4), "would use the mesh axis 'tensor' twice"),
        (
            ("embed",),
            (5,),
            "axis 'embed' of size 5 does not divide over mesh axis 'fsdp' of size 2",
        ),
        (("embed",), (2, 2, 2), "do not fit the shape"),
    ],
)
def test_partition_specs_that_are_refused(mesh, axes, shape, message):
    with pytest.raises(InputError, match=message):
        partition_spec(axes, shape, PARAMETER_RULES, mesh)


def test_states_are_placed_leaf_by_leaf(mesh):
    policy = abstract_policy(STEP_MODEL, lora=LoraConfig(2, 2.0, ("q",)))
    placed = nnx.to_flat_state(state_shardings(nnx.split(policy)[1], mesh))
    specs = {".".join(map(str, path)): leaf.get_value().spec for path, leaf in placed}
    assert specs["decoder.layers.q.kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["decoder.layers.q.lora_a"] == PartitionSpec(None, "fsdp", None)
    assert specs["decoder.layers.q.lora_b"] == PartitionSpec(None, None, "tensor")
    assert specs["decoder.norm.scale"] == PartitionSpec("fsdp")


def test_the_7b_divides_over_eight_devices():
    mesh = make_mesh(1, 4, 2)
    abstract = nnx.split(abstract_policy(JANUS_PRO_7B, lora=LoraConfig()))[1]
    placed = state_shardings(abstract, mesh)
    whole = held = 0
    for leaf, sharding in zip(jax.tree.leaves(abstract), jax.tree.leaves(placed), strict=True):
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        own = sharding.shard_shape(leaf.shape)  # raises where a size does not divide
        whole += leaf.size
        held += math.prod(own)
    assert 6.9e9 < whole < 7.5e9
    # Adapters and the image head are split over one of the two axes only.
    assert held < 1.06 * whole / 8


def test_start_divides_the_cpu():
    code = (
        "from gotr1_jax.parallel.startup import start_devices; start_devices(3);"
        "import jax; print(jax.device_count())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]
