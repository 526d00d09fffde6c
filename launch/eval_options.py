"""What `funicular eval` takes besides a recipe. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from funicular.launch.option_types import at_least

TASK_SETS = ("held_out", "train", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """What is evaluated, and how often."""

    model: str | None = None
    """Model folder, run folder or hub id; None: the recipe's `model.path`."""
    task_set: str = "held_out"
    """One of TASK_SETS."""
    tasks: int | None = None
    """At most; None: `evaluation.tasks`, or all where that is 0."""
    ks: tuple[int, ...] = (1,)
    """For pass@k, rising."""
    completions: int | None = None
    """Of each task; None: the largest k."""
    temperature: float | None = None
    """None: `evaluation.temperature`, or `generator.temperature` for several completions where that is 0."""
    json_file: Path | None = None
    """Where to write all figures; None: nowhere."""
    output: Path | None = None
    """Where completions and verdicts are written; None: `eval-NAME-TIME.jsonl` in the working directory."""


def add_eval(commands: argparse._SubParsersAction, takes_recipes: Callable[..., None]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "eval",
        help="pass@k and rewards of a model on a recipe's tasks",
        description="Starts the recipe's generators and scorers on the weights of a model folder, completes its tasks, "
        "and prints pass@k and mean rewards with confidence intervals. Trains nothing and writes no run folder.",
        allow_abbrev=False,
    )
    takes_recipes(parser, "[--model FOLDER] [--tasks N] [--k 1,4,8] [options]")
    parser.add_argument(
        "--model", metavar="FOLDER", help="a model folder, a run folder or a hub id (default: the recipe's model.path)"
    )
    parser.add_argument(
        "--set", dest="task_set", choices=TASK_SETS, default="held_out", help="which tasks (default held_out)"
    )
    parser.add_argument(
        "--tasks", type=at_least(1), metavar="N", help="at most so many (default: evaluation.tasks, or all if it is 0)"
    )
    parser.add_argument("--k", dest="ks", type=_ks, default=(1,), metavar="K[,K...]", help="k of pass@k (default 1)")
    parser.add_argument(
        "--completions", type=at_least(1), metavar="N", help="completions of each task (default: the largest k)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="default: evaluation.temperature, or generator.temperature for several completions where that is 0",
    )
    parser.add_argument("--json", dest="json_file", type=Path, metavar="FILE", help="write all figures here")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="completions and verdicts, one JSON object a line (default eval-NAME-TIME.jsonl)",
    )


def eval_options(options: argparse.Namespace) -> EvalOptions:
    """From the command line."""
    return EvalOptions(**{name: getattr(options, name) for name in EvalOptions.__dataclass_fields__})


def _ks(text: str) -> tuple[int, ...]:
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        ks = [0]
    if ks[0] < 1:
        raise argparse.ArgumentTypeError(f"got {text}: expected whole numbers from 1 up, separated by commas")
    return tuple(ks)
