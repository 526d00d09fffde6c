"""What `funicular export` takes. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from funicular.launch.option_types import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What is exported, and where to."""

    run_dir: str
    """The run folder."""
    to: Path | None = None
    """The new folder; None: only to the hub."""
    hub: str | None = None
    """owner/name on the hub; None: not there."""
    step: int | None = None
    """Of a checkpoint; None: the run's newest state."""
    base: str | None = None
    """The model that the run began with; None: where the run had it."""
    form: Literal["both", "merged", "adapter"] = "both"
    """both: the merged model, with the adapter, if there is one, in `adapter/`."""


def add_export(commands: argparse._SubParsersAction) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "export",
        help="a run's model, or a checkpoint's, as a folder or on the hub",
        description="Writes the model of a finished run, or the newest checkpoint's, in Hugging Face format, and loads "
        "it to see that it is whole.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", metavar="RUN_FOLDER")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="the new folder")
    parser.add_argument("--hub", metavar="OWNER/NAME", help="a repository of the hub, made private if it is new")
    parser.add_argument("--step", type=at_least(0), metavar="N", help="a checkpoint's step (default: the newest state)")
    parser.add_argument(
        "--base", metavar="FOLDER", help="the model that the run began with (default: where the run had it)"
    )
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument(
        "--adapter", dest="form", action="store_const", const="adapter", default="both", help="the adapter alone"
    )
    forms.add_argument(
        "--merged", dest="form", action="store_const", const="merged", help="the merged model without the adapter"
    )


def export_options(options: argparse.Namespace) -> ExportOptions:
    """From the command line."""
    return ExportOptions(**{name: getattr(options, name) for name in ExportOptions.__dataclass_fields__})
