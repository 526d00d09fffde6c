"""`funicular status`, `logs` and `stop`."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from datetime import datetime

from funicular.launch.jobs import Job, JobError, Jobs, NoSuchJob, cluster_address
from funicular.launch.progress_text import duration
from funicular.launch.submit import follow

DONE, FAILED, WRONG_INPUT = 0, 1, 2
_LAST_LINES = 8


def status(address: str | None, job: str | None, *, as_json: bool) -> int:
    """Print one job, or all; the exit status: 0, 1 the cluster cannot be asked, 2 there is no such job."""
    try:
        jobs = Jobs(cluster_address(address))
        found = [jobs.get(job)] if job else jobs.all()
    except (JobError, ValueError) as error:
        return _failed(error)
    if as_json:
        print(json.dumps(asdict(found[0]) if job else [asdict(one) for one in found], indent=1))
    elif job:
        print(_details(found[0]))
    else:
        print("\n".join(map(_row, found)) if found else f"there are no jobs at {jobs.address}")
    return DONE


def logs(address: str | None, job: str | None, *, until_end: bool, as_json: bool) -> int:
    """Print what a job has printed, as it is or as `text` of the job's record; the exit status: as for `status`, and
    the run's where it is followed."""
    try:
        jobs = Jobs(cluster_address(address))
        found = jobs.get(job) if job else jobs.newest()
        if until_end:
            return follow(jobs, found)
        text = jobs.text(found)
        if as_json:
            print(json.dumps({**asdict(found), "text": text}, indent=1))
        else:
            print(text, end="")
    except (JobError, ValueError) as error:
        return _failed(error)
    return DONE


def stop(address: str | None, job: str | None, *, as_json: bool) -> int:
    """Stop a job and wait for its end; the exit status: 0 it has ended by itself, 1 it was killed, or the cluster
    cannot be asked, 2 there is no such job."""
    try:
        jobs = Jobs(cluster_address(address))
        found = jobs.get(job) if job else jobs.only_running()
        if found.is_over:
            raise NoSuchJob(f"job {found.job} has ended: {found.status}")
        if not as_json:
            print(f"job {found.job} has {duration(found.stop_wait_s)} to finish its step and save", flush=True)
        began = time.monotonic()
        ended = jobs.stop(found)
        killed = time.monotonic() - began > found.stop_wait_s
        if as_json:
            print(json.dumps({**asdict(ended), "killed": killed}, indent=1))
        else:
            print("\n".join(jobs.text(ended).splitlines()[-_LAST_LINES:]))
            print(_end(ended, killed=killed))
    except (JobError, ValueError) as error:
        return _failed(error)
    return FAILED if killed else DONE


def _failed(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return FAILED if isinstance(error, JobError) else WRONG_INPUT


def _end(job: Job, *, killed: bool) -> str:
    if killed:
        return (
            f"job {job.job}: Ray killed it after {job.stop_wait_s} s, before it had saved. The newest complete "
            "checkpoint is what a new submission resumes from; give that one a longer --stop-wait-s"
        )
    return f"job {job.job}: {job.status}; submit again to resume"


def _row(job: Job) -> str:
    return f"{job.job:<32} {job.status:<9} {_time(job.started):<19}  {_length(job):>9}  {job.run or job.entrypoint}"


def _details(job: Job) -> str:
    rows = {
        "job": job.job,
        "status": job.status if job.exit_status is None else f"{job.status}, exit status {job.exit_status}",
        "run": job.run,
        "run folder": job.run_dir,
        "started": _time(job.started),
        "took": _length(job),
        "dashboard": job.dashboard,
        "mlflow": job.mlflow,
        "command": job.entrypoint,
        "message": job.message.splitlines()[0] if job.message else None,
    }
    return "\n".join(f"{name:<11} {value}" for name, value in rows.items() if value)


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds") if seconds else "-"


def _length(job: Job) -> str:
    return duration((job.ended or time.time()) - job.started) if job.started else "-"
