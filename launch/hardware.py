"""What a plan is made for: one accelerator's memory and speeds, from its data sheet; or this machine's, measured."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

GB = 10**9
TERA = 10**12


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device."""

    name: str
    memory: int
    """Bytes."""
    bandwidth: float
    """Bytes per second of its memory."""
    flops: float
    """Of dense products, per second, in the type that is fastest here: bfloat16 on GPUs."""
    host_link: float
    """Bytes per second between it and the host's memory, one way."""


def _gpu(name: str, memory_gb: float, bandwidth_gb: float, tflops: float, link_gb: float) -> Hardware:
    return Hardware(
        name=name,
        memory=int(memory_gb * GB),
        bandwidth=bandwidth_gb * GB,
        flops=tflops * TERA,
        host_link=link_gb * GB,
    )


GPUS = {
    "a100-40": _gpu("NVIDIA A100 40 GB", 40, 1_555, 312, 32),
    "a100": _gpu("NVIDIA A100 80 GB", 80, 2_039, 312, 32),
    "l40s": _gpu("NVIDIA L40S", 48, 864, 362, 32),
    "h100": _gpu("NVIDIA H100 SXM", 80, 3_350, 989, 64),
    "h200": _gpu("NVIDIA H200", 141, 4_800, 989, 64),
    "b200": _gpu("NVIDIA B200", 180, 8_000, 2_250, 64),
}
"""Data sheets' figures, without sparsity."""


def this_machine() -> Hardware:
    """The CPU, with its speeds measured for about two seconds."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    copied = copy_bandwidth() * GB
    cores = len(os.sched_getaffinity(0))
    return Hardware(
        name=f"this machine: {cores} cores, measured",
        memory=memory,
        bandwidth=2 * copied,  # a copy reads and writes
        flops=max(_product_rate(torch.float32), _product_rate(torch.bfloat16)),
        host_link=copied,
    )


def copy_bandwidth(nbytes: int = 1 << 28, rounds: int = 5) -> float:
    """GB/s of copying an array of `nbytes` in one thread, the best of `rounds`."""
    import numpy as np

    source = np.ones(nbytes, dtype=np.uint8)
    target = np.empty_like(source)
    np.copyto(target, source)  # touches every page first
    return nbytes / _fastest(lambda: np.copyto(target, source), rounds) / GB


def _product_rate(dtype: torch.dtype, size: int = 1024) -> float:
    import torch

    a = torch.randn(size, size).to(dtype)
    return 2 * size**3 / _fastest(lambda: a @ a)


def _fastest(work: Callable[[], object], rounds: int = 4) -> float:
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
