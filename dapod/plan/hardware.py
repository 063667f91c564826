"""GPUs by name, and the machines they stand in: data sheet numbers, no measurements.

Memory is the data sheet's decimal gigabytes. Dense bf16 with fp32 accumulation: where a sheet
prints the number "with sparsity", half of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dapod.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as its data sheet describes it."""

    name: str
    memory_bytes: float
    bf16_flops: float
    """Dense, a second."""
    memory_bytes_per_second: float
    source: str


def _gpu(name: str, gigabytes: float, teraflops: float, terabytes: float, source: str) -> Gpu:
    return Gpu(
        name=name,
        memory_bytes=gigabytes * 1e9,
        bf16_flops=teraflops * 1e12,
        memory_bytes_per_second=terabytes * 1e12,
        source=source,
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("h100", 80, 989, 3.35, "NVIDIA H100 data sheet, SXM"),
        _gpu("h200", 141, 989, 4.8, "NVIDIA H200 data sheet, SXM"),
        _gpu("h20", 96, 148, 4.0, "as resellers state it: NVIDIA publishes no data sheet"),
        _gpu("a100-80g", 80, 312, 2.039, "NVIDIA A100 data sheet, SXM 80 GB"),
        _gpu("a100-40g", 40, 312, 1.555, "NVIDIA A100 data sheet, SXM 40 GB"),
        _gpu("l40s", 48, 362, 0.864, "NVIDIA L40S data sheet"),
        _gpu("l4", 24, 121, 0.3, "NVIDIA L4 data sheet"),
    )
}


def gpu_named(name: str) -> Gpu:
    """Raises `ConfigError` for a GPU that is not in the table."""
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise ConfigError(f"--gpu {name}: known are {', '.join(GPUS)}") from None


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Equal nodes of equal GPUs."""

    nodes: int
    gpus_per_node: int
    gpu: Gpu

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node
