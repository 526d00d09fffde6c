"""What `funicular verify loss` takes besides a recipe. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from funicular.launch.option_types import at_least

LEAST_GROUPS = 4
"""An ordinary one, one with void completions, one without variance, and another ordinary one."""
LEAST_COMPLETIONS = 4
"""Two of a group become void, and two valid ones are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """How a certificate is made."""

    tasks: int = LEAST_GROUPS
    """Groups of the optimizer batch."""
    completions: int = LEAST_COMPLETIONS
    """Of each task."""
    completion_tokens: int = 24
    """Longest completion."""
    layers: int | None = None
    """Only the model's first layers; None: all."""
    random_tiny: str | None = None
    """A small random model of this `model_type` in the place of the recipe's; None: the recipe's."""
    score: bool = False
    """Rewards by the recipe's verifier and reward functions, instead of by chance."""
    json_file: Path | None = None
    """Where to write the certificate with every parameter's error; None: nowhere."""


def add_verify(
    commands: argparse._SubParsersAction, takes_recipes: Callable[[argparse.ArgumentParser, str], None]
) -> None:
    """Add the command to the command line."""
    verify = commands.add_parser("verify", help="check what this recipe computes, on this machine")
    verify_commands = verify.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    loss = verify_commands.add_parser(
        "loss",
        help="compare the learner's gradient with a plain float64 one, cut by cut",
        description="Computes the gradient of one optimizer batch of the recipe's model and tasks by the real learner, "
        "cut in several ways, and by a plain model in float64, and prints how far they are apart. Runs on this "
        "machine's CPU. Exit status: 0 PASS, 1 FAIL, 2 wrong input.",
        allow_abbrev=False,
    )
    takes_recipes(loss, "[--json FILE] [options]")
    default = VerifyOptions()
    numbers = (
        ("--tasks", "tasks", LEAST_GROUPS, "tasks in the batch"),
        ("--completions", "completions", LEAST_COMPLETIONS, "completions of each task"),
        ("--completion-tokens", "completion_tokens", 2, "longest completion"),
    )
    for flag, name, least, text in numbers:
        value = getattr(default, name)
        loss.add_argument(
            flag, dest=name, type=at_least(least), default=value, metavar="N", help=f"{text} (default {value})"
        )
    loss.add_argument(
        "--score", action="store_true", help="rewards by the recipe's verifier and reward functions, not by chance"
    )
    model = loss.add_mutually_exclusive_group()
    model.add_argument(
        "--layers",
        type=at_least(1),
        metavar="N",
        help="only the model's first N layers, for models too large for here",
    )
    model.add_argument(
        "--random-tiny", metavar="TYPE", help="instead of the recipe's model a small random one, such as qwen2 or llama"
    )
    loss.add_argument(
        "--json", dest="json_file", type=Path, metavar="FILE", help="write the certificate here, with every parameter"
    )


def verify_options(options: argparse.Namespace) -> VerifyOptions:
    """The command line's, as a record."""
    return VerifyOptions(**{name: getattr(options, name) for name in VerifyOptions.__dataclass_fields__})
