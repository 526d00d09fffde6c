"""What `funicular plan` takes besides a recipe. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from funicular.launch.hardware import GPUS
from funicular.launch.option_types import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the plan is made for."""

    device: str = "cpu"
    """A name of hardware.GPUS, or cpu: this machine, measured."""
    gpus: int | None = None
    """Devices that are there, of all nodes; None: as many as the recipe takes."""
    gpus_per_node: int = 8
    prompt_tokens: int | None = None
    """Mean length; None: the recipe's longest."""
    completion_tokens: int | None = None
    """Mean length; None: the recipe's longest."""
    json_file: Path | None = None
    """Where to write the plan; None: nowhere."""


def add_plan(commands: argparse._SubParsersAction, takes_recipes: Callable[..., None]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "plan", help="memory, speed and parts of a recipe, before anything starts", allow_abbrev=False
    )
    takes_recipes(parser, "[--gpu NAME] [--gpus N]")
    base = PlanOptions()
    parser.add_argument(
        "--gpu",
        choices=[*GPUS, "cpu"],
        default="cpu",
        help="kind of device; cpu (the default) is this machine, measured",
    )
    parser.add_argument("--gpus", type=at_least(1), metavar="N", help="that there are (default: as many as it takes)")
    parser.add_argument(
        "--gpus-per-node",
        type=at_least(1),
        metavar="N",
        default=base.gpus_per_node,
        help="(default %(default)s)",
    )
    parser.add_argument("--prompt-tokens", type=at_least(1), metavar="N", help="mean length (default: the longest)")
    parser.add_argument("--completion-tokens", type=at_least(1), metavar="N", help="mean length (default: the longest)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the plan here too")


def plan_options(options: argparse.Namespace) -> PlanOptions:
    """From the command line."""
    return PlanOptions(
        device=options.gpu,
        gpus=options.gpus,
        gpus_per_node=options.gpus_per_node,
        prompt_tokens=options.prompt_tokens,
        completion_tokens=options.completion_tokens,
        json_file=options.json,
    )
