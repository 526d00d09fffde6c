"""How fast published weights come into place in 1, 2 and 4 engines, and what memory that takes beside them.

    python tests/bench/sync.py [--model FOLDER] [--engines 4] [--versions 5] [--dtype bfloat16]
        [--transport object_store]

Real engines and the real object store; the weights are packed from the model's files, without a learner, so that the
generators' side stands alone. `funicular bench sync` measures a whole recipe.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.generator import generator_actor
from funicular.actors.weights import Manifest, PublishedWeights, assemble
from funicular.cluster.config import ClusterConfig
from funicular.cluster.session import Demand, connect, disconnect
from funicular.launch.environment import machine_line
from funicular.launch.hardware import copy_bandwidth
from funicular.launch.models import EMBEDDED, resolve_model

CHANGED = 0.05
"""Part of the elements that a new version changes."""


@ray.remote(num_cpus=1)
class Packer:
    """A plain model whose weights are published as the learner publishes its own."""

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from funicular.actors.weight_sender import WeightSender

        torch.set_num_threads(1)
        self._dtype = getattr(torch, dtype)
        self._sender = WeightSender(torch.device("cpu"))
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=self._dtype).eval()

    def send_weights(self, generator: str, workers: int, buckets: Sequence[Any], seconds: float) -> tuple[str, int]:
        """As the learner's first rank does."""
        return self._sender.begin(generator, workers, buckets, seconds)

    def pack(self, version: int, base: PublishedWeights | None) -> Iterator[np.ndarray | Manifest]:
        import torch

        from funicular.actors.payload_fetch import fetch_bucket
        from funicular.actors.weight_packing import pack, weights_of
        from tests.publish_helpers import canary

        torch.manual_seed(version)
        for parameter in self._model.parameters():
            parameter.data.mul_(1 + 0.01 * (torch.rand_like(parameter) < CHANGED))
        yield from pack(
            weights_of(self._model),
            version=version,
            dtype=self._dtype,
            bucket_bytes=64 << 20,
            columns=8,
            canary=lambda: canary(self._model, 32),
            packs=True,
            earlier=lambda index: fetch_bucket(base, index),
        )


class Memory:
    """Watches the private memory of engine processes while something runs."""

    def __init__(self) -> None:
        cores = [p for p in psutil.process_iter(["name"]) if "EngineCore" in (p.info["name"] or "")]
        me = psutil.Process().pid
        self._pids = [p.pid for p in cores if me in {parent.pid for parent in p.parents()}]
        self._stop = threading.Event()
        self._before = self._now()
        self._most = list(self._before)

    def _now(self) -> list[int]:
        return [_private_bytes(pid) for pid in self._pids]

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self._most = list(map(max, self._most, self._now()))

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def most_extra(self) -> int:
        """Bytes of the engine that took most beyond what it had."""
        return max(map(int.__sub__, self._most, self._before), default=0)


def _private_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


async def measure(arguments: argparse.Namespace) -> None:
    folder = str(arguments.model or resolve_model(EMBEDDED, print))
    engines = [2**i for i in range(arguments.engines.bit_length()) if 2**i <= arguments.engines]
    connect(ClusterConfig(address="local", object_store_gib=1.2), Demand(cpus=arguments.engines + 1, gpus=0))
    packer = Packer.remote(folder, arguments.dtype)
    transport = arguments.transport
    actor_class = generator_actor().options(num_cpus=1)
    actors = [
        actor_class.remote(
            f"generator-{number}",
            GeneratorConfig(
                dtype=arguments.dtype,
                kv_cache_gib=0.1,
                max_prompt_tokens=64,
                max_completion_tokens=16,
                cpu_threads=1,  # engines share the cores
            ),
            WeightSyncConfig(transport=transport),
            model_folder=folder,
            chat_template="auto",
            seed=number,
            use_gpu=False,
        )
        for number in range(max(engines))
    ]
    await asyncio.gather(*(actor.start.remote() for actor in actors))
    print(f"machine   {machine_line()}")
    print(f"memcpy    {copy_bandwidth():.1f} GB/s in one thread before, ", end="")
    published = await _packed(packer, 0, None, transport)
    await asyncio.gather(*(actor.install.remote(published, 1) for actor in actors))
    rows = []
    version = 0
    for count in engines:
        seconds, records, parts, extra = [], [], [], 0
        for _ in range(arguments.versions):
            version += 1
            published = await _packed(packer, version, published if transport == "delta" else None, transport)
            began = time.perf_counter()
            with Memory() as memory:
                records += await asyncio.gather(*(actor.install.remote(published, 1) for actor in actors[:count]))
            seconds.append(time.perf_counter() - began)
            extra = max(extra, memory.most_extra)
            parts += [await actor.metrics.remote() for actor in actors[:count]]
        rows.append((count, seconds, records, parts, extra))
        await asyncio.gather(*(actor.install.remote(published, 2) for actor in actors[count:]))
    limit = copy_bandwidth()
    print(f"{limit:.1f} after")
    _print(rows, limit, published.manifest, transport)
    disconnect()


async def _packed(packer: Any, version: int, base: PublishedWeights | None, transport: str) -> PublishedWeights:
    refs = [ref async for ref in packer.pack.options(num_returns="streaming").remote(version, base)]
    return assemble(await refs[-1], refs[:-1], sender=packer if transport == "broadcast" else None)


def _print(rows: Sequence[Any], limit: float, manifest: Manifest, transport: str) -> None:
    nbytes = manifest.total_bytes
    print(f"weights   {nbytes / 1e6:.0f} MB in {len(manifest.bucket_sizes)} buckets, {len(manifest.tensors)} tensors")
    print(f"transport {transport}")
    for count, seconds, records, parts, extra in rows:
        in_place = [r.load_seconds - r.packing_seconds for r in records]
        print(f"{count} engines: committed by all after {statistics.median(seconds):.3f} s, fastest {min(seconds):.3f}")
        for what, value in (("median", statistics.median(in_place)), ("fastest", min(in_place))):
            rate = nbytes / value / 1e9
            print(f"   in place, {what}: {value:.3f} s, {rate:.2f} GB/s, {rate / limit:.0%} of memcpy")
        fetched = statistics.median(r.fetched_bytes for r in records)
        broadcast = min(r.broadcast_bytes for r in records)
        print(f"   fetched {fetched / 1e6:.0f} MB, of it by broadcast at least {broadcast / 1e6:.0f}")
        print(f"   an engine's private memory grew by {extra / 1e6:.0f} MB at most")
        names = sorted({name for part in parts for name in part if name.startswith("sync/")})
        medians = {name[5:-2]: statistics.median(part[name] for part in parts if name in part) for name in names}
        print("   medians: " + ", ".join(f"{name} {value:.3f}" for name, value in medians.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--versions", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--transport", default="object_store", choices=("object_store", "delta", "broadcast"))
    asyncio.run(measure(parser.parse_args()))
