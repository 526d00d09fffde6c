"""`auto` for types of matrix products: bfloat16 where the device multiplies it itself, float32 elsewhere.

A CPU without such instructions multiplies bfloat16 many times slower than float32 (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from funicular.launch.config import Config

_CPU_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Of x86-64, and the last of aarch64."""


def with_native_types(config: Config, cpuinfo: Path = Path("/proc/cpuinfo"), devices: Path = Path("/dev")) -> Config:
    """The recipe with `auto` replaced by what is native to this machine, the same for generators and learner."""
    generator, learner = config.generator, config.learner
    if "auto" not in (generator.dtype, learner.compute_dtype):
        return config
    on_gpu = config.cluster.use_gpu
    if on_gpu is None:
        on_gpu = any(devices.glob("nvidia[0-9]*"))
    native: Literal["float32", "bfloat16"] = "bfloat16" if on_gpu or _multiplies_bfloat16(cpuinfo) else "float32"
    if generator.dtype == "auto":
        generator = replace(generator, dtype=native)
    if learner.compute_dtype == "auto":
        learner = replace(learner, compute_dtype=native)
    return replace(config, generator=generator, learner=learner)


def _multiplies_bfloat16(cpuinfo: Path) -> bool:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is hidden
        return False
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return not _CPU_FLAGS.isdisjoint(flags.partition(":")[2].split())
