"""The chips that a step can be compiled for on a machine that has none of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

# Facts of the chip, in XLA's format.
_H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
runtime_version { major: 13 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H200"
"""


@dataclass(frozen=True)
class Chip:
    """A chip that can be compiled for.

    Attributes:
      name: as `--target` calls it.
      package: the module of its compiler, and the requirement that installs it.
      environment: variables to set before JAX starts.
      platform, topology: its name in `jax.experimental.topologies`; None is the machine itself.
      mesh: the same for many of them.
      thin: whether rows that decompose matrices have matrices of width 128. The compiler of TPUs
        writes a decomposition out for each size, which takes minutes for a large one.
    """

    name: str
    package: tuple[str, str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    topology: Mapping[str, Any] | None = None
    mesh: Mapping[str, Any] | None = None
    thin: bool = False

    def check(self, *, many: bool = False) -> None:
        """Raises SystemExit if its compiler is not installed, or if it has no mesh for `many`."""
        if self.package is not None and importlib.util.find_spec(self.package[0]) is None:
            raise SystemExit(self.refusal(f"the compiler in {self.package[0]} is not installed"))
        if many and self.mesh is None:
            raise SystemExit(f"--target {self.name} is one chip; a mesh needs another target")

    def refusal(self, why: str) -> str:
        """A message that says why it cannot be compiled for, and what to install."""
        install = self.package[1] if self.package else "jax"
        return (
            f"--target {self.name}: {why}. It needs pip install '{install}=={jax.__version__}', "
            "in an environment that has no other accelerator's packages."
        )

    def devices(self, *, many: bool = False) -> list[Any]:
        """The devices to compile for: one, or all of `mesh`."""
        chosen = self.mesh if many else self.topology
        if chosen is None:
            return list(jax.devices("cpu"))
        from jax.experimental import topologies

        topology = topologies.get_topology_desc(platform=self.platform, **chosen)
        return list(topology.devices) if many else list(topology.devices[:1])


_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def _tpu(name: str) -> Chip:
    one, many = {"topology_name": f"{name}:2x2"}, {"topology_name": f"{name}:4x4"}
    return Chip(name, ("libtpu", "jax[tpu]"), _TPU, "tpu", one, many, thin=True)


CHIPS = {
    chip.name: chip
    for chip in [
        _tpu("v5e"),
        _tpu("v6e"),
        Chip(
            "h200",
            ("jax_cuda13_plugin", "jax[cuda13]"),
            {
                "JAX_PLATFORMS": "",
                "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
                "XLA_FLAGS": "--xla_gpu_autotune_level=0",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            "cuda",
            {"topology_name": "h200", "topology": "1x1x1", "target_config": _H200},
            {"topology_name": "h200", "topology": "1x1x8", "target_config": _H200},
        ),
        Chip("cpu", environment={"JAX_PLATFORMS": "cpu"}),
    ]
}


def named(name: str) -> Chip:
    """The chip of this name; SystemExit if there is none."""
    if name not in CHIPS:
        raise SystemExit(f"no target {name!r}; there are {', '.join(CHIPS)}")
    return CHIPS[name]
