"""What a compiled program's text and trace say: bytes and FLOPs worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from gotr1_jax.aot.chips import CHIPS, parse_topology
from gotr1_jax.aot.flops import count_flops
from gotr1_jax.aot.hlo import CollectiveTraffic as Traffic
from gotr1_jax.aot.hlo import collectives, shape_bytes
from gotr1_jax.errors import InputError

# A loop of 24 iterations with an all-gather of bf16[64,128] (16384 bytes), and after it an
# all-reduce of a tuple: f32[10] and bf16[3] are 46 bytes.
LOOP = """HloModule jit_f, num_partitions=4

%body (p: (s32[], bf16[16,128])) -> (s32[], bf16[16,128]) {
  %p = (s32[], bf16[16,128]{1,0}) parameter(0)
  %all-gather.1 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=1, dimensions={0}
  ROOT %t = (s32[], bf16[16,128]{1,0}) tuple(%i, %y)
}

%condition (p: (s32[], bf16[16,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: bf16[16,128]) -> f32[10] {
  %while.1 = (s32[], bf16[16,128]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %all-reduce.1 = (f32[10]{0}, bf16[3]{0}) all-reduce(%b, %c), channel_id=2, to_apply=%add
}
"""
# As a GPU's compiler writes it: a start, a done, and the number of iterations.
STARTED = """HloModule jit_f

%body (p: (s32[])) -> (s32[]) {
  %s = (f32[8]{0}, f32[2]{0}) reduce-scatter-start(%x), channel_id=3, dimensions={0}
  ROOT %d = f32[2]{0} reduce-scatter-done(%s)
}

ENTRY %main (a: f32[8]) -> f32[2] {
  %w = (s32[]) while(%s), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %p = f32[4]{0} collective-permute(%a), channel_id=4
}
"""
# As a TPU's compiler writes it: one all-gather in the pieces of an asynchronous one, and an
# all-reduce of which each device keeps a part.
PIECES = """HloModule jit_f

%start (p: f32[4]) -> f32[16] {
  %all-gather.1 = f32[16]{0} all-gather(%p), channel_id=5, dimensions={0}
  ROOT %s = f32[16]{0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%done (p: f32[4]) -> f32[16] {
  %all-gather.2 = f32[16]{0} all-gather(%p), channel_id=5, dimensions={0}
  ROOT %d = f32[16]{0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (p: f32[16]) -> f32[4] {
  %all-reduce.1 = f32[16]{0} all-reduce(%p), channel_id=6, to_apply=%add
  ROOT %slice = f32[4]{0} dynamic-slice(%all-reduce.1, %i), dynamic_slice_sizes={4}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %f1 = f32[16]{0} fusion(%a), kind=kCustom, calls=%start
  %f2 = f32[16]{0} fusion(%f1), kind=kCustom, calls=%done
  ROOT %f3 = f32[4]{0} fusion(%f2), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_shape_bytes() -> None:
    assert shape_bytes("bf16[2,3]{1,0:T(8,128)(2,1)}") == 12
    assert shape_bytes("(f32[10]{0}, pred[], u32[2]{0:S(4)})") == 40 + 1 + 8
    assert shape_bytes("token[]") == 0


def test_iterations_from_a_loops_condition() -> None:
    found = collectives(LOOP)
    assert found == {
        "all-gather": Traffic(24, 24 * 16384),
        "all-reduce": Traffic(1, 46),
    }
    # The caller may know better, as the loop may start late.
    assert collectives(LOOP, iterations=3)["all-gather"] == Traffic(3, 3 * 16384)


def test_started_and_done_is_one() -> None:
    found = collectives(STARTED)
    assert found == {
        "reduce-scatter": Traffic(5, 40),
        "collective-permute": Traffic(1, 16),
    }


# Three branches of a choice, in a loop of five; the second moves the most. A choice of two may be
# written by the truth of a condition.
BRANCHES = """HloModule jit_f

%short (p: f32[4]) -> f32[16] {
  ROOT %g1 = f32[16]{0} all-gather(%p), channel_id=1, dimensions={0}
}

%long (p: f32[4]) -> f32[16] {
  %g2 = f32[32]{0} all-gather(%p), channel_id=2, dimensions={0}
  ROOT %r = f32[16]{0} all-reduce(%q), channel_id=3, to_apply=%add
}

%middle (p: f32[4]) -> f32[16] {
  ROOT %g3 = f32[24]{0} all-gather(%p), channel_id=4, dimensions={0}
}

%body (p: (s32[])) -> (s32[]) {
  %c = f32[16]{0} conditional(%i, %x, %x, %x), branch_computations={%short, %long, %middle}
  ROOT %t = (s32[]) tuple(%i)
}

ENTRY %main (a: f32[4]) -> f32[16] {
  %w = (s32[]) while(%s), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %d = f32[16]{0} conditional(%b, %x, %x), true_computation=%last, false_computation=%none
}

%last (p: f32[4]) -> f32[16] {
  ROOT %g4 = f32[4]{0} collective-permute(%p), channel_id=5
}

%none (p: f32[4]) -> f32[16] {
  ROOT %b5 = f32[16]{0} broadcast(%p)
}
"""


def test_of_a_choice_one_branch_counts() -> None:
    assert collectives(BRANCHES) == {
        "all-gather": Traffic(5, 5 * 128),
        "all-reduce": Traffic(5, 5 * 64),
        "collective-permute": Traffic(1, 16),
    }


def test_pieces_of_one_collective_count_once() -> None:
    found = collectives(PIECES)
    assert found == {
        "all-gather": Traffic(1, 64),
        "reduce-scatter": Traffic(1, 16),
    }


# What libtpu writes for two slices of four chips: the program of one slice, in which the sum over
# all eight is a reduce-scatter, a transfer through the host, and an all-gather; in a loop of five.
TWO_SLICES = """HloModule jit_loop, is_scheduled=true, num_partitions=4

%body (p: (s32[], f32[128,1024])) -> (s32[], f32[128,1024]) {
  %rs = f32[32,1024]{1,0} reduce-scatter(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%r
  %send.2 = (f32[32,8,128]{2,1,0}, u32[], token[]) send(%b, %a), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.2 = (f32[32,8,128]{2,1,0}, u32[], token[]) recv(%a), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.2 = (f32[32,8,128]{2,1,0}, token[]) recv-done(%recv.2), channel_id=1
  %all-gather.8 = f32[128,1024]{1,0} all-gather(%y), channel_id=4, replica_groups={{0,1,2,3}}
  ROOT %t = (s32[], f32[128,1024]{1,0}) tuple(%i, %z)
}

ENTRY %main (a: f32[128,1024]) -> f32[128,1024] {
  %w = (s32[]) while(%s), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
}
"""  # noqa: E501


def test_what_crosses_tpu_slices() -> None:
    whole = 4 * 128 * 1024
    assert collectives(TWO_SLICES, slices=(0,) * 4 + (1,) * 4) == {
        "all-gather": Traffic(5, 5 * whole),
        # Each chip exchanges its quarter with the chip of the other slice.
        "all-reduce": Traffic(5, 5 * whole // 4, 5, 5 * whole // 4),
        "reduce-scatter": Traffic(5, 5 * whole // 4),
    }


@pytest.mark.parametrize(
    "groups, crosses",
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", False),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", True),
        ("replica_groups={}", True),  # all
        ("replica_groups=[2,4]<=[8]", False),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", True),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", False),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", False),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", True),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}", True),
        # (2,4) devices transposed: the first axis is along a slice, the last one across.
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", False),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", True),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'a'}", False),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,4,1,5,2,6,3,7) {'b'}", True),
        ("replica_groups=mesh['all'=8] {'all':(2)4}", False),
        ("replica_groups=mesh['all'=8] {'all':(1)2}", True),
        ("replica_groups=later[8]", True),  # unknown: at worst
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", False),
        ("source_target_pairs={{3,4},{4,3}}", True),
    ],
)
def test_groups_that_cross_slices(groups: str, crosses: bool) -> None:
    """Of eight devices, four in each of two slices."""
    kind = "collective-permute" if "pairs" in groups else "all-gather"
    text = f"""HloModule jit_f, num_partitions=8

ENTRY %main (a: f32[4]) -> f32[16] {{
  %s = (f32[4]{{0}}, f32[16]{{0}}) {kind}-start(%a), channel_id=1, {groups}
  ROOT %d = f32[16]{{0}} {kind}-done(%s), channel_id=1
}}
"""
    assert collectives(text) == {kind: Traffic(1, 64)}
    slices = (0,) * 4 + (1,) * 4
    expected = Traffic(1, 64, 1, 64) if crosses else Traffic(1, 64)
    assert collectives(text, slices=slices) == {kind: expected}


def test_flops_count_loops_branches_and_recomputation() -> None:
    w, x = jnp.zeros((8, 16)), jnp.zeros((4, 8))
    one = 2 * 4 * 8 * 16

    def twice(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (x @ w, None), x @ w, None, length=6)[0]

    assert count_flops(jax.jit(twice).trace(w, x).jaxpr) == 7 * one

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        inner = jax.checkpoint(lambda w: jnp.sin(jnp.sin(x @ w) @ w.T))
        return inner(w).sum()

    # Forward 2, again 2 (the second of them only for its own gradient: not made), backward 3.
    kept = count_flops(jax.jit(jax.grad(lambda w, x: jnp.sin(jnp.sin(x @ w) @ w.T).sum())).trace(
        w, x).jaxpr)  # fmt: skip
    assert kept == 5 * one
    assert count_flops(jax.jit(jax.grad(loss)).trace(w, x).jaxpr) == kept + 2 * one

    def branches(flag: jax.Array, w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.cond(flag, lambda: x @ w, lambda: (x @ w) @ w.T @ w)

    assert count_flops(jax.jit(branches).trace(True, w, x).jaxpr) == 3 * one

    def open_ended(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: (y @ w) @ w.T, x)

    assert count_flops(jax.jit(open_ended).trace(w, x).jaxpr, iterations=10) == 20 * one


def test_flops_of_a_convolution() -> None:
    # 5 x 5 outputs, 7 channels, each a sum over 3 x 3 x 2.
    image, kernel = jnp.zeros((1, 5, 5, 2)), jnp.zeros((3, 3, 2, 7))

    def convolve(x: jax.Array, k: jax.Array) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=names)

    traced = jax.jit(convolve).trace(image, kernel)
    assert count_flops(traced.jaxpr) == 2 * 25 * 7 * 18


def test_chips() -> None:
    for name, chip in CHIPS.items():
        assert chip.flops is not None and chip.bandwidth is not None, name
        # Every one of them needs 100 to 700 FLOPs a byte to be busy.
        assert 100 < chip.flops / chip.bandwidth < 700, name
        assert 15e9 < chip.hbm_bytes < 200e9, name
    assert parse_topology("v5e:16x16") == (CHIPS["v5e"], "16x16", 1)
    assert parse_topology("v5e:16x16*4") == (CHIPS["v5e"], "16x16", 4)
    assert parse_topology("h200:8") == (CHIPS["h200"], "8", 1)
    two, eight = parse_topology("cpu:2")[0], parse_topology("cpu:8")[0]
    assert two.hbm_bytes // 4 == eight.hbm_bytes


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "h200:9", "h200:2x4", "v5p:4", "cpu:0", "cpu:9"])
def test_topologies_that_are_not_known(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown topology '{name}'; chips are v4, v5e"):
        parse_topology(name)


@pytest.mark.parametrize("name", ["v5e:4x4*", "v5e:4x4*0", "v5e:4x4*2*2", "h100:8*x", "cpu:2*1000"])
def test_numbers_of_slices_that_are_not(name: str) -> None:
    with pytest.raises(InputError, match="after the [*] stands the number of slices, 1 to 999"):
        parse_topology(name)
