"""`funicular serve`: vLLM's OpenAI-compatible server on a model that was trained here, or on any other."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from funicular.actors.config import GeneratorConfig
from funicular.actors.engine import CPU_BLOCK, IN_PROCESS, engine_environment
from funicular.cluster.session import torch_is_cpu_build
from funicular.launch.model_folders import adapter_of, model_of
from funicular.launch.models import resolve_model
from funicular.launch.serve_options import ServeOptions

WRONG_INPUT = 2
_ENTRY = "vllm.entrypoints.launchers.api_server.entry"
"""What `vllm serve` runs. The command itself asks for a distribution called vllm; the CPU build has another name."""
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Room for adapters that vLLM can make (0.32.0)."""
_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The process that serves."""

    command: tuple[str, ...]
    environment: dict[str, str]
    """What is set besides this process's."""


def serve(options: ServeOptions) -> int:
    """Become the server; returns only for wrong input, with exit status 2."""
    try:
        server = server_of(options, on_cpu=torch_is_cpu_build())
        _refuse_a_port_in_use(options.host, options.port)
    except (ValueError, OSError) as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    print(f"starting vLLM; then http://{options.host}:{options.port}/v1 answers", file=sys.stderr, flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    os.execve(sys.executable, server.command, environment | server.environment)


def server_of(options: ServeOptions, *, on_cpu: bool) -> Server:
    """The command and its environment.

    Raises:
        ValueError: there is no such model or adapter, or the adapter's rank is beyond what vLLM has room for.
    """
    folder = resolve_model(model_of(options.model), key="FOLDER")
    name = options.name or Path(options.model).expanduser().resolve().name
    words = [sys.executable, "-m", _ENTRY, "--model", str(folder)]
    words += ["--served-model-name", name, "--host", options.host, "--port", str(options.port)]
    if dtype := _dtype_of(folder):
        words += ["--dtype", dtype]
    if on_cpu:
        words += ["--kv-cache-memory-bytes", str(int(options.kv_cache_gib * _GIB)), "--block-size", str(CPU_BLOCK)]
        words += ["--enforce-eager", "--distributed-executor-backend", IN_PROCESS]
    words += _adapters(options)
    environment = engine_environment(GeneratorConfig(), use_gpu=not on_cpu)
    return Server(command=(*words, *options.further), environment=environment)


def _refuse_a_port_in_use(host: str, port: int) -> None:
    """Here, and not by vLLM after its imports, with a traceback."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as vLLM: a server that has just ended is no reason
        try:
            here.bind(address)
        except OSError as error:
            raise ValueError(
                f"--host {host} --port {port}: {error.strerror}; expected one that is free. Stop what listens there, "
                f"or give another: --port {port + 1}"
            ) from error


def _dtype_of(folder: Path) -> str | None:
    """The type that the weights were written in: by itself vLLM serves float32 ones in bfloat16, another policy."""
    config = json.loads((folder / "config.json").read_text())
    found = (part.get(key) for part in (config, config.get("text_config", {})) for key in ("dtype", "torch_dtype"))
    return next((dtype for dtype in found if dtype), None)


def _adapters(options: ServeOptions) -> list[str]:
    if not options.loras:
        return []
    folders = {name: adapter_of(path) for name, path in options.loras}
    largest = max(json.loads((folder / "adapter_config.json").read_text())["r"] for folder in folders.values())
    room = next((rank for rank in _RANKS if rank >= largest), None)
    if room is None:
        raise ValueError(f"--lora: an adapter has rank {largest}, vLLM has room for {_RANKS[-1]} at most")
    modules = [f"{name}={folder}" for name, folder in folders.items()]
    return ["--enable-lora", "--max-lora-rank", str(room), "--lora-modules", *modules]
