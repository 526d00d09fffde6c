"""What `funicular bench` takes besides a recipe. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from funicular.launch.option_types import at_least


def add_bench(commands: argparse._SubParsersAction, takes_recipes: Callable[..., None]) -> None:
    """Add the commands to a parser."""
    bench = commands.add_parser("bench", help="how fast parts of a run are on this cluster")
    bench_commands = bench.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    bench_sync = bench_commands.add_parser(
        "sync",
        help="how fast weights reach the generators, against copying memory",
        description="Starts the recipe's learner ranks and generators, publishes the initial weights again and again, "
        "and prints what each part of weight sync took. Trains nothing and writes no run folder.",
        allow_abbrev=False,
    )
    takes_recipes(bench_sync, "[--versions N]")
    bench_sync.add_argument(
        "--versions", type=at_least(1), default=5, metavar="N", help="versions to publish after the first (default 5)"
    )
    generate = bench_commands.add_parser(
        "generate",
        help="tokens a second of a generator, against what memory and arithmetic allow",
        description="Starts one engine as the recipe's generators have it, completes the recipe's tasks, and prints "
        "tokens per second beside a bound that is measured on the spot. Trains nothing and writes no run folder.",
        allow_abbrev=False,
    )
    takes_recipes(generate, "[--tokens N] [--rounds N] [--json FILE]")
    generate.add_argument(
        "--tokens",
        type=at_least(2),
        metavar="N",
        help="length of completions (default generator.max_completion_tokens)",
    )
    generate.add_argument(
        "--rounds", type=at_least(1), default=3, metavar="N", help="rounds after one that warms up (default 3)"
    )
    generate.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="write all figures here")
