"""Devices of a named topology; this machine need not have them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

import jax

from gotr1_jax.aot.chips import Chip, parse_topology
from gotr1_jax.errors import InputError

_CUDNN_VERSION = 91000  # 9.10
# By default libtpu searches for a TPU and locks it for one process. Here it only compiles.
_TPU_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
}


@dataclass(frozen=True)
class Target:
    """A topology.

    Attributes:
      name, chip: as given.
      devices: of all hosts, slice by slice.
      host_devices: of one process. With several hosts they are a topology of their own, because
        the TPU compiler does not accept a part of one.
      slices: how many slices of a TPU, or hosts of GPUs, the devices are.
    """

    name: str
    chip: Chip
    devices: tuple[Any, ...]
    host_devices: tuple[Any, ...]
    slices: int = 1

    def slice_numbers(self, devices: Iterable[Any]) -> tuple[int, ...]:
        """For each of some devices the slice that it belongs to; () if there is one slice."""
        if self.slices == 1:
            return ()
        size = len(self.devices) // self.slices
        places = {device: i // size for i, device in enumerate(self.devices)}
        return tuple(places.get(device, 0) for device in devices)


def find_target(name: str) -> Target:
    """The target of a name like v5e:4x4, v5e:16x16*4 (four slices), h200:8 or cpu:8.

    Raises InputError for an unknown name, and when the compiler is not installed.
    """
    chip, shape, slices = parse_topology(name)
    one = name.partition("*")[0]
    if chip.platform == "cpu":
        cpus = _cpu_devices(int(shape) * slices, name)
        return Target(name, chip, cpus, cpus, slices)
    from jax.experimental import topologies

    try:
        if chip.platform == "tpu":
            _require_compiler(("libtpu",), name, "pip install 'gotr1_jax[tpu]'", "libtpu")
            for key, value in _TPU_ENVIRONMENT.items():
                os.environ.setdefault(key, value)
            several = {} if slices == 1 else {"num_slices": slices}
            found = topologies.get_topology_desc(platform="tpu", topology_name=one, **several)
            devices: tuple[Any, ...] = tuple(sorted(found.devices, key=_slice_and_process))
            if len({device.process_index for device in devices}) > 1:
                # A host of a slice has four chips.
                of_host = re.sub(r":.*", ":2x2x1" if shape.count("x") == 2 else ":2x2", one)
                alone = topologies.get_topology_desc(platform="tpu", topology_name=of_host)
                return Target(name, chip, devices, tuple(alone.devices), slices)
        else:
            plugins = ("jax_cuda13_plugin", "jax_cuda12_plugin")
            _require_compiler(plugins, name, _cuda_command(), "JAX's CUDA plugin")
            os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
            kind = name.partition(":")[0]
            text = files("gotr1_jax.aot") / "gpu_targets" / f"{kind}.txtpb"
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=kind, topology=f"1x{slices}x{shape}",
                target_config=text.read_text(encoding="utf-8"),
            )  # fmt: skip
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"topology {name} is not available: {error}") from error
    devices = tuple(found.devices)
    own = tuple(d for d in devices if d.process_index == devices[0].process_index)
    return Target(name, chip, devices, own, slices)


@contextmanager
def with_cudnn(target: Target) -> Iterator[None]:
    """Trace for GPUs as where cuDNN is installed: its calls are compiled without it.

    JAX asks the machine that it traces on for cuDNN's version and has no option for another one.
    Where its internals are not as here, attention is XLA's, and the report says so.
    """
    calls: Any = None
    with suppress(ImportError):
        calls = import_module("jax._src.cudnn.fused_attention_stablehlo")
    found = getattr(calls, "check_cudnn_version", None)
    if found is None or target.chip.platform != "cuda":
        yield
        return
    calls.check_cudnn_version = lambda: _CUDNN_VERSION
    try:
        yield
    finally:
        calls.check_cudnn_version = found


def _slice_and_process(device: Any) -> tuple[int, int]:
    return device.slice_index, device.process_index


def _cpu_devices(count: int, name: str) -> tuple[Any, ...]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise InputError(f"{name} needs {count} CPU devices, JAX was started with fewer")
    return tuple(devices[:count])


def _require_compiler(modules: tuple[str, ...], name: str, command: str, what: str) -> None:
    if all(find_spec(module) is None for module in modules):
        raise InputError(f"compiling for {name} needs {what}, which is not installed: {command}")


def _cuda_command() -> str:
    """Installs the two packages that compile; NVIDIA's own libraries are needed to run only."""
    try:
        number = version("jax")
    except PackageNotFoundError:
        number = "VERSION"
    return (
        f"pip install --no-deps jax-cuda13-plugin=={number} jax-cuda13-pjrt=={number} "
        "(enough to compile), or pip install 'gotr1_jax[cuda13]'"
    )
