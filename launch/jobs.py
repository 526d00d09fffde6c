"""Jobs of a Ray cluster, through its job server: finding it, what a job is, and errors that say what to do.

Imports Ray, which reads RAY_AUTH_MODE then: `ray_token.use_token` comes first.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from funicular.launch.ray_token import TOKEN_FIX

ANSWER_S = 60.0
"""Seconds within which the job server must answer."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of a job: seconds between SIGTERM and SIGKILL."""
RUN, RUN_DIR, MLFLOW = "funicular_run", "funicular_run_dir", "funicular_mlflow"
"""Metadata of a job that `funicular submit` sent."""
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_RAY_STOP_WAIT_S = 3
"""Ray's own, where a job does not say."""
_AFTER_KILL_S = 60.0
"""Seconds within which Ray must say that a job has ended which it should have killed."""
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray with a line for each file sent and each connection closed."""
_AGENT_FIX = (
    "The agent of the head does not run. It takes some seconds after `ray start`; after that, its reason stands in "
    "dashboard_agent.log of Ray's session folder. Where another Ray of the same machine holds its port: `ray start "
    "--head --dashboard-agent-listen-port=PORT`"
)
_ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


class JobError(RuntimeError):
    """The cluster cannot be asked, or refuses; says what to do.

    Args:
        said: what is wrong.
        fix: what to do, where `said` does not end with it.
    """

    def __init__(self, said: str, fix: str = "") -> None:
        super().__init__(f"{said}. {fix}" if fix else said)
        self.said = said
        self.fix = fix


class NoSuchJob(ValueError):
    """There is no such job, or several; names those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job, as far as its users care."""

    job: str
    """Its id, which `status`, `logs` and `stop` take."""
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    run: str | None
    """Name of the run; None: the job was not sent by `funicular submit`."""
    run_dir: str | None
    mlflow: str | None
    entrypoint: str
    started: float | None
    """Seconds since 1970."""
    ended: float | None
    exit_status: int | None
    """Of the entrypoint; None while it runs, and after a stop, of which Ray does not tell."""
    message: str | None
    dashboard: str
    stop_wait_s: int

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.status in _ENDED


def cluster_address(given: str | None) -> str:
    """The job server's address.

    Args:
        given: by `--address`; it wins over the environment.

    Raises:
        ValueError: it is no dashboard's.
    """
    places = {"--address": given} | {name: os.environ.get(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    place, address = next(((place, value) for place, value in places.items() if value), ("", _DEFAULT_ADDRESS))
    if not address.startswith(("http://", "https://")):
        raise ValueError(
            f"{place}={address}: expected the address of the cluster's dashboard, such as http://HEAD:8265. Give it "
            "with --address"
        )
    return address.rstrip("/")


class _Client(JobSubmissionClient):
    """With a deadline for every request; Ray's own waits for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=ANSWER_S, **options)


class Jobs:
    """The jobs of one cluster.

    Raises:
        JobError: nobody answers, or the token is refused.
    """

    def __init__(self, address: str) -> None:
        # Ray's client lets this variable win over what it is given
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        for name in _TALKATIVE:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.address = address
        with self._errors():
            self._client = _Client(address)

    def ray_version(self) -> str:
        """The cluster's."""
        with self._errors():
            return str(self._client._do_request("GET", "/api/version").json()["ray_version"])

    def submit(self, entrypoint: str, job: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Send files and start a job."""
        with self._errors():
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=job, runtime_env=runtime_env, metadata=metadata
            )

    def all(self) -> list[Job]:
        """Submitted jobs, the oldest first."""
        with self._errors():
            found = [self._job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0)

    def get(self, job: str) -> Job:
        """One job.

        Raises:
            NoSuchJob: the cluster does not know it.
        """
        found = {known.job: known for known in self.all()}
        if job not in found:
            raise NoSuchJob(f"no job {job} at {self.address}; there is {', '.join(found) or 'none'}")
        return found[job]

    def newest(self) -> Job:
        """The one that was started last.

        Raises:
            NoSuchJob: there is none.
        """
        if not (found := self.all()):
            raise NoSuchJob(f"there are no jobs at {self.address}")
        return found[-1]

    def only_running(self) -> Job:
        """The one that has not ended.

        Raises:
            NoSuchJob: there is none, or there are several.
        """
        running = [job for job in self.all() if not job.is_over]
        if len(running) != 1:
            names = ", ".join(job.job for job in running)
            raise NoSuchJob(f"several jobs run: {names}; name one" if running else f"no job runs at {self.address}")
        return running[0]

    def stop(self, job: Job) -> Job:
        """SIGTERM, and wait until the job has ended.

        Raises:
            JobError: Ray has not ended it some time after it should have been killed.
        """
        with self._errors():
            self._client.stop_job(job.job)
        return self.until_over(job, job.stop_wait_s + _AFTER_KILL_S)

    def until_over(self, job: Job, deadline_s: float) -> Job:
        """Wait until the job has ended.

        Raises:
            JobError: it has not within `deadline_s` seconds.
        """
        limit = time.monotonic() + deadline_s
        while not (now := self.get(job.job)).is_over:
            if time.monotonic() > limit:
                raise JobError(f"job {job.job} is still {now.status} after {deadline_s:.0f} s; look at {now.dashboard}")
            time.sleep(1.0)
        return now

    def text(self, job: Job) -> str:
        """All that the job has printed so far."""
        with self._errors():
            return str(self._client.get_job_logs(job.job))

    async def lines(self, job: Job) -> AsyncIterator[str]:
        """What the job prints, until it ends."""
        with self._errors():
            async for text in self._client.tail_job_logs(job.job):
                yield text

    def _job(self, details: Any) -> Job:
        metadata = details.metadata or {}
        variables = (details.runtime_env or {}).get("env_vars", {})
        return Job(
            job=details.submission_id,
            status=str(details.status.value),
            run=metadata.get(RUN),
            run_dir=metadata.get(RUN_DIR),
            mlflow=metadata.get(MLFLOW),
            entrypoint=details.entrypoint,
            started=details.start_time / 1000 if details.start_time else None,
            ended=details.end_time / 1000 if details.end_time else None,
            exit_status=details.driver_exit_code,
            message=details.message,
            dashboard=f"{self.address}/#/jobs/{details.submission_id}",
            stop_wait_s=int(variables.get(STOP_WAIT, _RAY_STOP_WAIT_S)),
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        fix = (
            "Give the dashboard's address with --address or RAY_ADDRESS, and see that the cluster runs (`ray status` "
            "on its head; `ray start --head` starts one)"
        )
        try:
            yield
        except AuthenticationError as error:
            raise JobError(f"{self.address}: {str(error).splitlines()[0]}", TOKEN_FIX) from error
        except requests.Timeout as error:
            raise JobError(f"{self.address} does not answer within {ANSWER_S:.0f} s", fix) from error
        except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
            raise JobError(f"no Ray job server answers at {self.address}: {str(error).rstrip('.')}", fix) from error
        except RuntimeError as error:  # how Ray's client says what the server answered
            hint = _AGENT_FIX if "No available agent" in str(error) else ""
            raise JobError(f"{self.address}: {str(error).rstrip('.')}", hint) from error
