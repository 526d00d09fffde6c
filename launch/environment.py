"""What a run ran on, as text: an artifact that explains, later, why two runs differ."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata


def environment_report() -> str:
    """Python, platform, processor, GPUs, then every installed distribution with its version, sorted.

    GPUs are named only if torch is already loaded: loading it here would take seconds and memory.
    """
    lines = [
        f"python {platform.python_version()} ({platform.python_implementation()})",
        f"platform {platform.platform()}",
        f"cpu {_cpu_model()}, {os.cpu_count()} logical cores",
    ]
    torch = sys.modules.get("torch")
    if torch is None:
        lines.append("gpu not looked for: torch is not loaded in this process")
    elif torch.cuda.is_available():
        lines += [f"gpu {i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        lines.append("gpu none")
    packages = {f"{found.name}=={found.version}" for found in metadata.distributions()}
    return "\n".join([*lines, "", *sorted(packages, key=str.lower)]) + "\n"


def machine_line() -> str:
    """Processor, memory and the versions that numbers depend on, for a table of measurements."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "deepspeed", "transformers"))
    return f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB; {versions}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except FileNotFoundError:  # not Linux
        pass
    return platform.processor() or platform.machine()
