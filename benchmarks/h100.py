r"""One H100 to compile for, without owning one.

It takes Python 3.12 or later and

    pip install jax==0.11.2 flax optax ml_collections orbax-checkpoint psutil etils tensorboard \
      matplotlib filelock sentencepiece tokenizers safetensors nvidia-cuda-nvcc-cu12
    pip install --no-deps jax-cuda12-plugin==0.11.2 jax-cuda12-pjrt==0.11.2

(the plugins without what they depend on: the CUDA libraries, gigabytes that only run programs).
In the environment, before jax is imported (`prepare` sets them): JAX_PLATFORMS=cpu,
JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 and, in XLA_FLAGS, --xla_gpu_autotune_level=0, since nothing can
be timed, and --xla_gpu_cuda_data_dir=SITE_PACKAGES/nvidia/cuda_nvcc. What a GPU chooses by timing,
tilings and which products cuBLAS takes, is then chosen by rules: bytes and kernels are those of
the program, up to that choice.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

# What XLA must know of a GPU to compile for it.
TARGET = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
clock_rate_ghz: 1.98 device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
registers_per_block_limit: 65536 } platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3" """


def prepare() -> None:
    """Sets the variables of this process; flags that are in XLA_FLAGS stay. Before jax is imported.

    Raises:
      RuntimeError: what compiles is not installed.
    """
    modules = {
        "jax-cuda12-plugin": "jax_cuda12_plugin",
        "nvidia-cuda-nvcc-cu12": "nvidia.cuda_nvcc",
    }
    found = {package: _find(module) for package, module in modules.items()}
    if missing := [package for package, spec in found.items() if spec is None]:
        raise RuntimeError(
            f"to compile for an H100 {' and '.join(missing)} must be installed, and found none: "
            "see the head of benchmarks/h100.py"
        )
    (nvcc,) = found["nvidia-cuda-nvcc-cu12"].submodule_search_locations
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()


def device() -> Any:
    """An H100 that programs can be compiled for, and that none can run on."""
    from jax.experimental import topologies  # `prepare` comes first

    description = topologies.get_topology_desc(
        "h100", "cuda", target_config=TARGET, topology="1x1x1"
    )
    return description.devices[0]


def _find(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is missing
        return None
