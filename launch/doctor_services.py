"""What `funicular doctor` asks of services: the Ray cluster, MLflow, storage of checkpoints, the sandbox, the model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from funicular.cluster import session
from funicular.launch.addresses import public_uri
from funicular.launch.config import Config
from funicular.launch.doctor_machine import write_near
from funicular.launch.finding import Finding, broken, doubtful, ok
from funicular.launch.ray_token import TOKEN_FIX, token_place, use_token
from funicular.rewards.verifiers import SANDBOXED

SUBMIT_ADDRESS = "RAY_API_SERVER_ADDRESS"
"""Wins over RAY_ADDRESS with `funicular submit` and its kin; `funicular train` does not read it."""
ANSWER_S = 20.0
"""Seconds within which a service must answer."""


def service_findings(config: Config) -> Iterator[Finding]:
    """One after the other; each has a deadline."""
    submitted_to = os.environ.get(SUBMIT_ADDRESS)  # first: who asks a job server sets it
    yield ray_token(config)
    yield ray_cluster(config)
    if submitted_to:
        yield submit_server(submitted_to)
    yield mlflow_server(config)
    yield checkpoint_store(config)
    yield sandbox_level(config)
    yield model_files(config)


def ray_address(config: Config) -> str:
    """Where the run would connect to: `local`, or an address."""
    return session.ray_address(config.cluster)


def ray_token(config: Config) -> Finding:
    """A cluster with token authentication wants one."""
    if ray_address(config) == "local" and not os.environ.get(SUBMIT_ADDRESS):
        return ok("ray token", "not needed: Ray is started by the run")
    if os.environ.get("RAY_AUTH_MODE", "token") == "disabled":
        return ok("ray token", "RAY_AUTH_MODE=disabled")
    place = token_place()
    if place == "RAY_AUTH_TOKEN":
        return ok("ray token", "RAY_AUTH_TOKEN is set")
    if place is not None:
        return ok("ray token", f"in {place}")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    where = f"RAY_AUTH_TOKEN_PATH={path} is no file with a token" if path else "no token here"
    return broken("ray token", where, TOKEN_FIX)


def ray_cluster(config: Config) -> Finding:
    """Whether a cluster answers, in Ray's own words."""
    address = ray_address(config)
    if address == "local":
        return ok("ray", "the run starts its own (cluster.address, RAY_ADDRESS)")
    if address.startswith(("http://", "https://")):
        return _job_server("ray", address.rstrip("/"), "RAY_ADDRESS")
    complaint = _unhealthy(address.removeprefix("ray://"))
    if complaint is not None:
        fix = "Start it (`ray start --head`), correct cluster.address or RAY_ADDRESS, or set cluster.address=local"
        if "InvalidAuthToken" in complaint:
            unsent = os.environ.get("RAY_AUTH_MODE") != "token"
            fix = "Set RAY_AUTH_MODE=token: without it Ray's drivers send no token" if unsent else TOKEN_FIX
        return broken("ray", f"no healthy cluster at {address}: {complaint}", fix)
    return ok("ray", f"a healthy cluster at {address}")


def submit_server(address: str) -> Finding:
    """The cluster that `funicular submit` goes to, where a variable that is for nothing else names it."""
    if address.startswith(("http://", "https://")):
        return _job_server("submit", address.rstrip("/"), SUBMIT_ADDRESS)
    said = f"{SUBMIT_ADDRESS}={address}: expected the address of the cluster's dashboard"
    return broken("submit", public_uri(said), "Give it as http://HEAD:8265")


def _job_server(what: str, address: str, place: str) -> Finding:
    """The address is for `funicular submit`, and the job server is asked as it asks. `place` names it."""
    use_token()
    from funicular.launch.jobs import JobError, Jobs

    try:
        there = Jobs(address).ray_version()
    except JobError as error:
        fix = error.fix or f"Correct {place}: the address of the cluster's dashboard, such as http://HEAD:8265"
        return broken(what, f"{place}: {public_uri(error.said)}", fix)
    said = f"Ray {there} answers `funicular submit` at {public_uri(address)}; `funicular train` takes host:port"
    here = metadata.version("ray")
    if there != here:
        fix = f"Start the cluster with Ray {here}, or install the cluster's here: pip install 'ray[default]=={there}'"
        return doubtful(what, f"{said}. Installed here is Ray {here}", fix)
    return ok(what, said)


def _unhealthy(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except (OSError, ValueError) as error:
        return str(error)
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        return f"Ray gives no answer within {ANSWER_S:.0f} s"
    if done.returncode == 0:
        return None
    said = (done.stderr or done.stdout).strip().splitlines()
    return said[-1] if said else "`ray health-check` says that it is not healthy"


def mlflow_server(config: Config) -> Finding:
    """Whether metrics will arrive."""
    if not config.tracking.mlflow:
        return ok("mlflow", "off (tracking.mlflow=false); metrics.jsonl is written")
    uri = config.tracking.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        return ok("mlflow", "a database beside the run folder (tracking.mlflow_uri, MLFLOW_TRACKING_URI)")
    parts = urlsplit(uri)
    shown = public_uri(uri)
    if parts.scheme not in ("http", "https"):
        return _local_mlflow(parts.scheme, parts.path, shown)
    import requests

    fix = (
        "Start the server, correct tracking.mlflow_uri or MLFLOW_TRACKING_URI, and give MLFLOW_TRACKING_USERNAME and "
        "_PASSWORD or _TOKEN where it wants them. Training goes on without it; `funicular metrics sync` sends later"
    )
    endpoint = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    authentication = _mlflow_credentials()
    try:
        answer = requests.get(endpoint, timeout=ANSWER_S, **authentication)
    except requests.RequestException as error:
        return broken("mlflow", f"{shown}: {type(error).__name__}", fix)
    if answer.status_code != 200:
        return broken("mlflow", f"{shown} answers {answer.status_code} {answer.reason}", fix)
    return ok("mlflow", f"{shown} answers")


def _mlflow_credentials() -> dict[str, Any]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"headers": {"Authorization": f"Bearer {token}"}}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return {"auth": (user, os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))}
    return {}


def _local_mlflow(scheme: str, path: str, shown: str) -> Finding:
    if scheme not in ("", "file", "sqlite"):
        return ok("mlflow", f"{shown}, not tried")
    # of a database the folder: SQLite writes a journal beside it
    folder = Path(path[1:]).absolute().parent if scheme == "sqlite" else Path(path).absolute()
    try:
        write_near(folder)
    except OSError as error:
        fix = "Give another place with tracking.mlflow_uri or MLFLOW_TRACKING_URI, or make room and permission there"
        return broken("mlflow", f"{shown}: {folder} cannot be written: {error.strerror}", fix)
    return ok("mlflow", shown)


def checkpoint_store(config: Config) -> Finding:
    """Writes a small file where checkpoints are copied to, and deletes it."""
    path = config.checkpoint.path
    if path is None:
        return ok("checkpoint store", "none: checkpoints stay in the run folder (checkpoint.path)")
    from funicular.launch.checkpoint_store import open_store

    try:
        store = open_store(path, config.name)
        store.probe()
    except (ValueError, OSError) as error:
        fix = "Correct checkpoint.path, or give its credentials as the store's own variables (AWS_*, GOOGLE_*)"
        return broken("checkpoint store", str(error).splitlines()[0], fix)
    return ok("checkpoint store", f"{store.shown} can be written to")


def sandbox_level(config: Config) -> Finding:
    """Starts a slot and attacks it, as a run does."""
    from funicular.launch.sandbox_checks import effective_sandbox
    from funicular.rewards.sandbox.isolation import ORDER
    from funicular.rewards.sandbox.probe import reach

    found = reach()
    wanted = effective_sandbox(config).min_level
    needed = config.reward.verifier in SANDBOXED
    reasons = "; ".join(f"not {level}: {reason.splitlines()[0]}" for level, reason in found.reasons.items())
    fix = "`funicular sandbox probe` names the switch to change; docs/sandbox.md. Or lower sandbox.min_level"
    names = [level.value for level in ORDER]
    reached = None if found.level is None else found.level.value
    if reached is None or names.index(reached) > names.index(str(wanted)):
        said = f"level {reached or 'none'}, sandbox.min_level={wanted}. {reasons}"
        return broken("sandbox", said, fix) if needed else doubtful("sandbox", f"{said} This recipe needs none", fix)
    return ok("sandbox", f"level {reached}{f' ({reasons})' if reasons else ''}")


def model_files(config: Config) -> Finding:
    """Whether `model.path` is there; of a hub id only its configuration is asked for."""
    from funicular.launch.model_shape import config_folder
    from funicular.launch.models import ModelError

    try:
        folder = config_folder(config.model.path)
    except ModelError as error:
        return broken("model", str(error), "Correct model.path, log in with HF_TOKEN, or fetch it to a folder first")
    return ok("model", f"{config.model.path} in {folder}")
