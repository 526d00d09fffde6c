"""A real MLflow server on this machine that can be killed and started again, and a real Postgres for it."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

START_S = 240.0
"""The first start makes the database's tables: half a minute on a calm machine."""


class MlflowServer:
    """`mlflow server` over a database."""

    def __init__(self, folder: Path, database: str) -> None:
        """Starts nothing. `database`: what `--backend-store-uri` takes."""
        self._folder = folder
        self._database = database
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", self._database]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        log = self._folder / "server.log"
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=os.environ | settings, start_new_session=True
            )
        wait_for(self._answers, START_S, lambda: f"MLflow at {self.uri} to answer; {log.read_text()[-2000:]}")

    def kill(self) -> None:
        """End it and all its processes at once, as a lost machine does."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, f"MLflow's server ended: {(self._folder / 'server.log').read_text()}"
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


@contextmanager
def postgres() -> Iterator[str]:
    """A Postgres of its own, as an unprivileged user, in a folder that goes away; its URI.

    Raises:
        LookupError: something that it needs is not installed; says what.
    """
    initdb = shutil.which("initdb") or next(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), None)
    if initdb is None:
        raise LookupError("no initdb: Debian has it in the package postgresql")
    binaries = Path(initdb).resolve().parent
    user = _unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="funicular-postgres-"))
    shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    run = _runner(user, folder)
    try:
        run([initdb, "-D", str(data), "-U", "mlflow", "--auth=trust", "--no-sync"])
        run([str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start"])
        try:
            run([str(binaries / "createdb"), "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"])
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
        finally:
            run([str(binaries / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder)


def _unprivileged_user() -> str:
    if os.getuid() != 0:
        return getpass.getuser()
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError as error:
        raise LookupError("root may not run Postgres, and there is no user postgres") from error


def _runner(user: str, folder: Path) -> Callable[[list[str]], None]:
    identity = {"user": user, "group": pwd.getpwnam(user).pw_gid} if os.getuid() == 0 else {}

    def run(command: list[str]) -> None:
        with (folder / "commands.log").open("ab") as output:  # no pipe: the server would hold it open
            subprocess.run(command, check=True, timeout=120, cwd=folder, stdout=output, stderr=output, **identity)

    return run


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def wait_for(condition: Callable[[], bool], deadline_s: float, what: Callable[[], str]) -> None:
    """Returns when the condition holds; fails after the deadline with what was waited for."""
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, f"waited {deadline_s:.0f} s for {what()}"
        time.sleep(0.2)
