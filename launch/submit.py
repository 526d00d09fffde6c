"""`funicular submit`: a checked recipe as a job of a Ray cluster."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from funicular.launch.addresses import public_uri
from funicular.launch.config import Config
from funicular.launch.jobs import MLFLOW, RUN, RUN_DIR, STOP_WAIT, Job, JobError, Jobs, NoSuchJob, cluster_address
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.shipment import Shipment, copy_package, plan_shipment, write_archive
from funicular.launch.submit_options import SubmitOptions

DONE, FAILED, WRONG_INPUT = 0, 1, 2
STOPPED, INTERRUPTED = 143, 130
"""As `funicular train` ends after SIGTERM; as a shell says of Ctrl-C."""
_END_S = 60.0
"""Seconds between the end of a job's output and of the job."""


def submit(loaded: LoadedRecipe, recipes: Sequence[str], overrides: Sequence[str], options: SubmitOptions) -> int:
    """Send the recipe and start it; the exit status: 0 it was sent, 1 the cluster refuses, 2 wrong input. When it is
    followed, that of the run."""
    try:
        shipment = plan_shipment(loaded, recipes, options.working_dir, options.exclude)
        jobs = Jobs(cluster_address(options.address))
        job = _send(jobs, loaded.config, shipment, overrides, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if options.as_json:
        print(json.dumps(asdict(job), indent=1))
        return DONE
    print(_sent(job, shipment, loaded.config))
    return follow(jobs, job) if options.follow else DONE


def follow(jobs: Jobs, job: Job) -> int:
    """Print the job's output until it ends; the run's exit status."""
    try:
        asyncio.run(_print_lines(jobs, job))
        ended = jobs.until_over(job, _END_S)
    except KeyboardInterrupt:
        print(f"\njob {job.job} goes on; `funicular logs -f {job.job}` follows it again, `funicular stop` stops it")
        return INTERRUPTED
    except (JobError, NoSuchJob) as error:
        print(f"error: {error}\nThe job may go on: `funicular status {job.job}`", file=sys.stderr)
        return FAILED
    print(f"job {job.job}: {ended.status}")
    if ended.status == "STOPPED":
        return STOPPED
    return FAILED if ended.exit_status is None else ended.exit_status


async def _print_lines(jobs: Jobs, job: Job) -> None:
    async for text in jobs.lines(job):
        print(text, end="", flush=True)


def _send(jobs: Jobs, config: Config, shipment: Shipment, overrides: Sequence[str], options: SubmitOptions) -> Job:
    words = ["python", "-m", "funicular.launch.cli", "train"]
    words += [word for recipe in shipment.recipes for word in ("-c", recipe)]
    name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', config.name)}-{uuid.uuid4().hex[:8]}"
    metadata = {RUN: config.name, RUN_DIR: str(config.run_dir)}
    if (uri := _mlflow_uri(config, options)) is not None:
        metadata[MLFLOW] = public_uri(uri)
    with tempfile.TemporaryDirectory(prefix="funicular-submit-") as folder:
        runtime_env: dict[str, Any] = {"env_vars": {STOP_WAIT: str(options.stop_wait_s), **options.environment}}
        if shipment.root is not None:
            runtime_env["working_dir"] = str(write_archive(shipment, Path(folder) / "recipe.zip"))
        if options.package:
            runtime_env["py_modules"] = [str(path) for path in copy_package(Path(folder) / "package")]
        jobs.submit(shlex.join([*words, *overrides]), name, runtime_env, metadata)
    return jobs.get(name)


def _mlflow_uri(config: Config, options: SubmitOptions) -> str | None:
    """Where the run will be tracked, as far as it is known here."""
    if not config.tracking.mlflow:
        return None
    return config.tracking.mlflow_uri or options.environment.get("MLFLOW_TRACKING_URI")


def _sent(job: Job, shipment: Shipment, config: Config) -> str:
    if not config.tracking.mlflow:
        mlflow = "off (tracking.mlflow=false)"
    else:
        where = job.mlflow or f"MLFLOW_TRACKING_URI of the cluster, else SQLite beside {config.run_dir}"
        mlflow = f"{where}; the run prints its own link"
    sent = f"{len(shipment.files)} files, {shipment.nbytes / 1024:,.0f} KiB of {shipment.root}"
    rows = {
        "job": job.job,
        "sent": sent if shipment.root else "a packaged recipe, no files",
        "run folder": config.run_dir,
        "dashboard": job.dashboard,
        "mlflow": mlflow,
        "follow": f"funicular logs -f {job.job}",
        "stop": f"funicular stop {job.job}, then submit again to resume",
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items())
