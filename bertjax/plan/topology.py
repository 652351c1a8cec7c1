"""From the name of a slice to devices for compilation, whether or not they are there."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax

from bertjax.config import ConfigError, closest
from bertjax.plan.chips import CHIPS, Chip, chip_of

_EXAMPLES = {1: "8", 2: "4x4", 3: "2x2x4"}
# Values that libtpu would ask a metadata server for, or complain about on stderr.
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any known type
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    # Compiling uses no chip, so it may run beside the process that holds the lock, or held it when
    # it was killed.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class TopologyError(ConfigError):
    """A topology that cannot be planned for; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The target of a plan.

    Attributes:
      name: "v5e:16x16", or "this machine".
      num_slices: slices, or machines with GPUs, joined by a network.
      num_chips: over all slices.
      chip: published figures; None if the device is not in the table.
      backend: "tpu", "gpu" or "cpu".
      devices: to compile for; empty if only arithmetic is possible.
      owned: whether the devices exist here; then they report their memory.
    """

    name: str
    num_slices: int
    num_chips: int
    chip: Chip | None
    backend: str
    devices: tuple[Any, ...]
    owned: bool = False

    @property
    def device_kind(self) -> str:
        """The device's name in JAX."""
        return self.chip.device_kind if self.chip else self.devices[0].device_kind


def open_target(name: str, num_slices: int, compiles: bool = True) -> Target:
    """Finds or describes the devices of a topology.

    Args:
      name: such as "v5e:16x16" or "h100:8"; "" = the devices of this machine.
      num_slices: equal slices (TPU) or machines (GPU).
      compiles: False = arithmetic only, without devices of a slice and without libtpu.

    Raises:
      TopologyError: the name is not known, or libtpu is missing, locked or refuses the shape.
    """
    if num_slices < 1:
        raise TopologyError(f"--num_slices={num_slices} must be at least 1")
    if not name:
        if num_slices != 1:
            raise TopologyError("--num_slices needs --topology: this machine is one slice")
        devices = tuple(jax.devices())
        kind, platform = devices[0].device_kind, devices[0].platform
        return Target("this machine", 1, len(devices), chip_of(kind), platform, devices, owned=True)
    chip, shape = parse_topology(name)
    num_chips = math.prod(shape) * num_slices
    # Nothing below may use a chip of this machine, or its memory.
    jax.config.update("jax_platforms", "cpu")
    backend = "tpu" if chip.device_kind.startswith("TPU") else "gpu"
    if backend == "gpu" or not compiles:
        return Target(name, num_slices, num_chips, chip, backend, ())
    devices = _tpu_devices(name, chip, shape, num_slices)
    if len(devices) != num_chips:
        raise TopologyError(
            f"libtpu made {len(devices)} devices of {num_chips} chips of {name}: only chips that "
            "are one device can be planned for"
        )
    return Target(name, num_slices, num_chips, chip, backend, devices)


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape of "v5e:16x16".

    Raises:
      TopologyError: the name is not of that form, or the chip is not known.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    known = ", ".join(f"{c.name}:{_EXAMPLES[c.dimensions]}" for c in CHIPS.values())
    if match is None:
        raise TopologyError(
            f"--topology={name} is not of the form CHIP:SHAPE; examples of what is known: {known}"
        )
    chip = CHIPS.get(match[1].lower())
    if chip is None:
        raise TopologyError(
            f"--topology={name}: no figures for {match[1]!r}, {closest(match[1], CHIPS)}; "
            f"examples: {known}"
        )
    shape = tuple(int(x) for x in match[2].split("x"))
    if len(shape) != chip.dimensions or 0 in shape:
        raise TopologyError(
            f"--topology={name}: a shape of {chip.name} has {chip.dimensions} "
            f"dimension{'s' * (chip.dimensions > 1)}, as in "
            f"{chip.name}:{_EXAMPLES[chip.dimensions]}"
        )
    return chip, shape


def _tpu_devices(name: str, chip: Chip, shape: tuple[int, ...], num_slices: int) -> tuple[Any, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(
            f"--topology={name}: the TPU compiler libtpu is not installed; "
            "pip install 'bertjax[plan]' (Linux, x86-64; no TPU is needed)"
        )
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    arguments: dict[str, Any] = {}
    if math.prod(shape) < 4:
        arguments["chips_per_host_bounds"] = (*shape, 1)[:3]
    if chip.name == "v4":
        arguments["chip_config_name"] = "megacore"  # both cores of a chip are one device
    if num_slices > 1:
        arguments["num_slices"] = num_slices
    try:
        return tuple(
            topologies.get_topology_desc(
                platform="tpu",
                topology_name=f"{chip.name}:{'x'.join(map(str, shape))}",
                **arguments,
            ).devices
        )
    except jax.errors.JaxRuntimeError as error:
        raise TopologyError(_advice(name, str(error))) from error


def _advice(name: str, message: str) -> str:
    """What to do about an error of libtpu."""
    if "lockfile" in message:
        path = re.search(r"(/\S*lockfile)", message)
        file = path[1].rstrip('".') if path else "/tmp/libtpu_lockfile"
        return (
            f"--topology={name}: libtpu found the lock file {file}: another process uses libtpu, "
            f"or one was killed and left it. End that process, or else rm {file}, and try again"
        )
    return f"--topology={name}: libtpu refuses it: {message}"
