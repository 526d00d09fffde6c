"""What `funicular submit`, `status`, `logs` and `stop` take. Loads nothing heavy: `--help` must be quick."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from funicular.launch.option_types import at_least

ANYWHERE = "/"
"""Absolute paths of a submitted recipe are the cluster's, and are not looked for here."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """How a job is sent, which no recipe says."""

    address: str | None = None
    """The dashboard's; None: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the dashboard of this machine."""
    follow: bool = False
    working_dir: Path | None = None
    """Folder that travels; None: the recipe's."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths in that folder that stay here."""
    package: bool = True
    """Send this installation's code; False: the cluster's own is used."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the driver and of all parts of the run."""
    stop_wait_s: int = 900
    """Seconds between SIGTERM and SIGKILL when the job is stopped."""
    as_json: bool = False


def add_submit(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    takes_recipes: Callable[[argparse.ArgumentParser, str], None],
) -> None:
    """Add `submit` to the commands."""
    base = SubmitOptions()
    parser = commands.add_parser(
        "submit",
        help="train as a job of a Ray cluster",
        description="Checks the recipe here, sends it with its folder and this installation's code to a Ray cluster, "
        "and starts `funicular train` there. Submit again to resume.",
        allow_abbrev=False,
    )
    takes_recipes(parser, "[options]")
    _takes_address(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="print the run's output until it ends")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print one JSON object")
    parser.add_argument("--working-dir", type=Path, metavar="DIR", help="folder that travels (default: the recipe's)")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="paths in it that stay here; may be repeated"
    )
    parser.add_argument(
        "--no-package", dest="package", action="store_false", help="use the code that the cluster has installed"
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        type=_variable,
        metavar="NAME[=VALUE]",
        help="a variable of the run; its value here if none is given. The dashboard shows it: no secrets",
    )
    parser.add_argument(
        "--stop-wait-s",
        type=at_least(1),
        default=base.stop_wait_s,
        metavar="N",
        help=f"seconds that a stopped run has to save itself (default {base.stop_wait_s})",
    )


def add_job_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `status`, `logs` and `stop` to the commands."""
    status = commands.add_parser("status", help="jobs of a Ray cluster, or one of them", allow_abbrev=False)
    status.add_argument("job", nargs="?", metavar="JOB", help="as submit printed it (default: all)")
    logs = commands.add_parser("logs", help="what a job has printed", allow_abbrev=False)
    logs.add_argument("job", nargs="?", metavar="JOB", help="default: the newest")
    logs.add_argument("--follow", "-f", action="store_true", help="go on until the job ends")
    stop = commands.add_parser(
        "stop",
        help="have a run save itself and end",
        description="Sends SIGTERM: the run finishes its step, saves and ends. Submit it again to resume.",
        allow_abbrev=False,
    )
    stop.add_argument("job", nargs="?", metavar="JOB", help="default: the only one that runs")
    for parser in (status, logs, stop):
        parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
        _takes_address(parser)


def submit_options(options: argparse.Namespace) -> SubmitOptions:
    """From the command line.

    Raises:
        ValueError: options that do not fit together.
    """
    refuse_followed_json(options)
    return SubmitOptions(
        address=options.address,
        follow=options.follow,
        working_dir=options.working_dir,
        exclude=tuple(options.exclude),
        package=options.package,
        environment=dict(options.env),
        stop_wait_s=options.stop_wait_s,
        as_json=options.as_json,
    )


def refuse_followed_json(options: argparse.Namespace) -> None:
    """Of `submit` and the commands for jobs.

    Raises:
        ValueError: both are wanted.
    """
    if options.as_json and getattr(options, "follow", False):
        raise ValueError("--follow, --json: expected one of them; a run's output is not JSON")


def _takes_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265)",
    )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not _VARIABLE.fullmatch(name):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME or NAME=VALUE")
    if not equals and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here; write {name}=VALUE")
    return name, value if equals else os.environ[name]
