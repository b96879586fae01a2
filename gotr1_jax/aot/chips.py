"""Peak numbers of one JAX device of each accelerator.

Sources: the vendors' pages, read in November 2026: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,
v6e,tpu7x} and NVIDIA's data sheets of the H100 and H200 (SXM, dense). `hbm_bytes` is the memory
that programs may use: for a TPU the compiler's limit (a part is reserved), for a GPU the driver's
number.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from gotr1_jax.errors import InputError

_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
      platform: JAX's name: tpu, cuda or cpu.
      hbm_bytes: memory that programs may use.
      flops: bfloat16 FLOP/s of matrix products; None: unknown.
      bandwidth: of its memory, bytes/s; None: unknown.
    """

    platform: str
    hbm_bytes: int
    flops: float | None = None
    bandwidth: float | None = None


# A chip of v4 or tpu7x is two devices, each with half of the chip's numbers.
CHIPS = {
    "v4": Chip("tpu", int(15.25 * _GIB), 275e12 / 2, 1200e9 / 2),
    "v5e": Chip("tpu", int(15.75 * _GIB), 197e12, 819e9),
    "v5p": Chip("tpu", int(95.74 * _GIB), 459e12, 2765e9),
    "v6e": Chip("tpu", int(31.25 * _GIB), 918e12, 1638e9),
    "tpu7x": Chip("tpu", int(94.75 * _GIB), 2307e12 / 2, 7380e9 / 2),
    "h100": Chip("cuda", 85_017_755_648, 989.4e12, 3350e9),
    "h200": Chip("cuda", 150_110_011_392, 989.4e12, 4800e9),
}
# What JAX calls the same devices. Others of these families (PCIe, NVL, a part of a GPU) have other
# numbers and are unknown.
_DEVICE_KINDS = {
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "tpu7x": "tpu7x",
    "tpu v7x": "tpu7x",
    "nvidia h100 80gb hbm3": "h100",
    "nvidia h200": "h200",
}
_SHAPES = {"tpu": r"\d+x\d+(x\d+)?", "cuda": r"[1-8]", "cpu": r"[1-8]"}
_EXAMPLES = "v5e:4x4, v5p:4x4x4, v6e:8x8, h200:1 to h200:8, h100:8, cpu:1 to cpu:8"
_SEVERAL = "v5e:16x16*4 or h100:8*2"


class Topology(NamedTuple):
    """A topology's chip, the shape of a slice or the devices of a host, and how many of them."""

    chip: Chip
    shape: str
    slices: int = 1


def chip_name(device_kind: str) -> str | None:
    """The name in `CHIPS` of a JAX device's `device_kind`; None: its peak numbers are unknown."""
    return _DEVICE_KINDS.get(device_kind.strip().lower())


def parse_topology(name: str) -> Topology:
    """The topology of a name like v5e:16x16*4, four slices; InputError for an unknown one."""
    one, star, count = name.partition("*")
    kind, _, shape = one.partition(":")
    chip = _cpu(shape) if kind == "cpu" else CHIPS.get(kind)
    if chip is None or not re.fullmatch(_SHAPES[chip.platform], shape):
        raise InputError(
            f"unknown topology {name!r}; chips are {', '.join(CHIPS)} and cpu, written like "
            f"{_EXAMPLES}; several slices or hosts like {_SEVERAL}"
        )
    if star and not re.fullmatch(r"[1-9]\d{0,2}", count):
        raise InputError(
            f"topology {name!r}: after the * stands the number of slices, 1 to 999, as in "
            f"{_SEVERAL}"
        )
    return Topology(chip, shape, int(count or 1))


def _cpu(count: str) -> Chip:
    """This machine's memory, divided by the devices; its speed is unknown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip("cpu", memory // max(1, int(count) if count.isdecimal() else 1))
