"""Published figures of the chips that a plan knows."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; its peak FLOP/s are in `bertjax.flops`.

    Attributes:
      name: as in a topology's name, "v5e".
      device_kind: its name in JAX.
      hbm_bytes: main memory available to a program.
      hbm_bytes_per_second: to and from main memory.
      link_bytes_per_second: that one chip can send to the others of its slice or machine, over
        all of its links together.
      network_bytes_per_second: that one chip can send to other slices or machines; None if it
        is not published.
      dimensions: of a slice: 2 or 3, or 1 if chips are simply counted.
    """

    name: str
    device_kind: str
    hbm_bytes: int
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    network_bytes_per_second: float | None
    dimensions: int


# TPU: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e. HBM is the memory that libtpu
# 0.0.42.1 gives a program, by its error message ("exceeds available HBM (15.75G)"); the pages say
# 32 GiB, 16 GB, 95 GB and 32 GB. The pages give the ICI bandwidth of both directions together (v5e
# 400 GB/s, v5p 1,200, v6e 800): half of it can be sent. For v4 the page has none: six links of
# 50 GB/s (Jouppi et al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer"). DCN: v5p 50
# Gb/s per chip; v5e 6.4 Tb/s and v6e 25.6 Tb/s per pod of 256 chips.
# GPU: NVIDIA's data sheets of A100 SXM 80 GB (2021), H100 SXM (2024) and H200 SXM (2024): memory,
# its bandwidth, NVLink (600 and 900 GB/s of both directions). A program has three quarters of the
# memory, JAX's default (docs.jax.dev/en/latest/gpu_memory_allocation.html). Network: the DGX A100
# and DGX H100 data sheets, one port of 200 and of 400 Gb/s per GPU.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v4", "TPU v4", int(30.75 * GIB), 1_200e9, 300e9, None, 3),
        Chip("v5e", "TPU v5 lite", int(15.75 * GIB), 819e9, 200e9, 3.125e9, 2),
        Chip("v5p", "TPU v5", int(95.74 * GIB), 2_765e9, 600e9, 6.25e9, 3),
        Chip("v6e", "TPU v6 lite", int(31.25 * GIB), 1_638e9, 400e9, 12.5e9, 2),
        Chip("a100", "NVIDIA A100-SXM4-80GB", int(0.75 * 80e9), 2_039e9, 300e9, 25e9, 1),
        Chip("h100", "NVIDIA H100 80GB HBM3", int(0.75 * 80e9), 3_350e9, 450e9, 50e9, 1),
        Chip("h200", "NVIDIA H200", int(0.75 * 141e9), 4_800e9, 450e9, 50e9, 1),
    )
}


def chip_of(device_kind: str) -> Chip | None:
    """The chip by `jax.Device.device_kind`; None if its figures are not known."""
    return next((chip for chip in CHIPS.values() if chip.device_kind == device_kind), None)
