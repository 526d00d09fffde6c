"""What `funicular serve` takes. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from funicular.launch.option_types import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is served, and where."""

    model: str
    """Model folder, run folder or hub id."""
    name: str | None = None
    """The model's name for clients; None: the folder's."""
    loras: tuple[tuple[str, str], ...] = ()
    """Name for clients, and folder, of each adapter."""
    host: str = "127.0.0.1"
    port: int = 8000
    kv_cache_gib: float = 1.0
    """KV cache on a CPU."""
    further: tuple[str, ...] = ()
    """Options of `vllm serve`, which win over ours."""


def add_serve(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "serve",
        help="a model behind vLLM's OpenAI-compatible server",
        usage="funicular serve FOLDER [--lora NAME=FOLDER ...] [options] [-- options of `vllm serve`]",
        description="Starts vLLM's OpenAI-compatible server on a model, with the chat template of its folder, on GPUs "
        "or on a CPU. It ends when it is told to (Ctrl-C, SIGTERM).",
        allow_abbrev=False,
    )
    default = ServeOptions(model="")
    parser.add_argument("model", metavar="FOLDER", help="a model folder, a run folder or a hub id")
    parser.add_argument("--name", help="the model's name for clients (default: the folder's)")
    parser.add_argument(
        "--lora",
        dest="loras",
        action="append",
        default=[],
        type=_named_folder,
        metavar="NAME=FOLDER",
        help="an adapter, or a folder that has one in adapter/; clients ask for it by NAME",
    )
    parser.add_argument("--host", default=default.host, help=f"address to listen at (default {default.host})")
    parser.add_argument("--port", type=at_least(1), default=default.port, help=f"(default {default.port})")
    parser.add_argument(
        "--kv-cache-gib",
        type=float,
        default=default.kv_cache_gib,
        metavar="GIB",
        help=f"KV cache on a CPU (default {default.kv_cache_gib:g})",
    )


def serve_options(options: argparse.Namespace, further: Sequence[str]) -> ServeOptions:
    """From the command line.

    Args:
        further: what stood behind `--`.
    """
    return ServeOptions(
        model=options.model,
        name=options.name,
        loras=tuple(options.loras),
        host=options.host,
        port=options.port,
        kv_cache_gib=options.kv_cache_gib,
        further=tuple(further),
    )


def _named_folder(text: str) -> tuple[str, str]:
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected NAME=FOLDER")
    return name, folder
