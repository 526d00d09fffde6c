"""`auto` for types of matrix products: bfloat16 where the device multiplies it faster than float32, float32 elsewhere.

A CPU without such instructions multiplies bfloat16 many times slower than float32. One of Intel's that has AVX512-BF16
but no AMX, or hides it from its guests, does it half as fast (docs/benchmarks.md; seen on Emerald Rapids).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from funicular.launch.config import Config

_FASTER = {"amx_bf16", "bf16"}
"""Flags of x86-64, and the last of aarch64."""
_FASTER_UNLESS_INTEL = "avx512_bf16"


def with_native_types(
    config: Config,
    cpuinfo: Path = Path("/proc/cpuinfo"),
    devices: Path = Path("/dev"),
    *,
    on_gpu: bool | None = None,
) -> Config:
    """The recipe with `auto` replaced by what is fastest, the same for generators and learner.

    Args:
        on_gpu: where it runs; None: on a GPU if `cluster.use_gpu` says so, or else if this machine has one.
    """
    generator, learner = config.generator, config.learner
    if "auto" not in (generator.dtype, learner.compute_dtype):
        return config
    if on_gpu is None:
        on_gpu = config.cluster.use_gpu
    if on_gpu is None:
        on_gpu = any(devices.glob("nvidia[0-9]*"))
    fastest: Literal["float32", "bfloat16"] = (
        "bfloat16" if on_gpu or _multiplies_bfloat16_faster(cpuinfo) else "float32"
    )
    if generator.dtype == "auto":
        generator = replace(generator, dtype=fastest)
    if learner.compute_dtype == "auto":
        learner = replace(learner, compute_dtype=fastest)
    return replace(config, generator=generator, learner=learner)


def changed_types(before: Mapping[str, Any], now: Config) -> list[str]:
    """What a resumed run computes in another type than it began with: on another machine `auto` may say something else.

    Args:
        before: the run folder's config.yaml.
    """
    types = {"generator.dtype": now.generator.dtype, "learner.compute_dtype": now.learner.compute_dtype}
    sentences = []
    for key, value in types.items():
        section, _, name = key.partition(".")
        began = before.get(section, {}).get(name)
        if began is not None and began != value:
            sentences.append(f"{key}={value} from now on, and {began} before; {key}={began} keeps it")
    return sentences


def _multiplies_bfloat16_faster(cpuinfo: Path) -> bool:
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is hidden
        return False
    processor = {key.strip().lower(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    flags = processor.get("flags") or processor.get("features") or []
    intel = processor.get("vendor_id") == ["GenuineIntel"]
    return not _FASTER.isdisjoint(flags) or (_FASTER_UNLESS_INTEL in flags and not intel)
