"""What one node does: CPU, memory and GPUs, as its kernel and NVML say."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

PERIOD_S = 5.0
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One look at a node."""

    cpu_frac: float
    """Of all cores, since the look before."""
    memory_bytes: int
    memory_frac: float
    gpus: tuple[tuple[float, int], ...]
    """Of each GPU: part of the last second or so in which it computed, and bytes of memory in use."""


class NodeStats:
    """Looks at its node every `PERIOD_S`, from a thread, and tells what it saw since it was last asked."""

    def __init__(self, period_s: float = PERIOD_S) -> None:
        self._gpus = _gpu_handles()
        self._samples: list[Sample] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._period_s = period_s
        self._thread = threading.Thread(target=self._watch, name="node-stats", daemon=True)
        self._thread.start()

    def report(self) -> dict[str, float]:
        """`node_metrics` of the looks since the last report; empty if it is asked again within a period."""
        with self._lock:
            samples, self._samples = self._samples, []
        return node_metrics(samples)

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        psutil.cpu_percent()  # the first answer in a thread means nothing
        while not self._stop.wait(self._period_s):
            sample = self._look()
            with self._lock:
                self._samples.append(sample)

    def _look(self) -> Sample:
        import psutil

        memory = psutil.virtual_memory()
        used = memory.total - memory.available
        return Sample(
            cpu_frac=psutil.cpu_percent() / 100,
            memory_bytes=used,
            memory_frac=used / memory.total,
            gpus=tuple(_look_at_gpu(handle) for handle in self._gpus),
        )


def node_metrics(samples: list[Sample]) -> dict[str, float]:
    """Means of what was computed and the largest of memory; nothing without samples."""
    if not samples:
        return {}
    metrics = {
        "cpu_frac": sum(sample.cpu_frac for sample in samples) / len(samples),
        "memory_gib": max(sample.memory_bytes for sample in samples) / _GIB,
        "memory_frac": max(sample.memory_frac for sample in samples),
    }
    for number in range(len(samples[0].gpus)):
        looks = [sample.gpus[number] for sample in samples]
        metrics[f"gpu{number}_frac"] = sum(busy for busy, _ in looks) / len(looks)
        metrics[f"gpu{number}_memory_gib"] = max(used for _, used in looks) / _GIB
    return metrics


def node_stats_actor(node_id: str) -> Any:
    """The Ray actor class of a node's `NodeStats`. It reserves nothing, and ends with its node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return ray.remote(NodeStats).options(
        num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    )


def _gpu_handles() -> list[Any]:
    """Of all GPUs of the node, whoever may use them; none where there is no driver, or no `nvidia-ml-py`."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    return [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]


def _look_at_gpu(handle: Any) -> tuple[float, int]:
    import pynvml

    return pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100, int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
