"""What stands in a run's folder, and the lock that keeps a second driver out of it.

config.yaml      the resolved recipe
ledger.jsonl     what became of every group
metrics.jsonl    one line per log call
checkpoints/     what a run resumes from
model/           the trained model, Hugging Face format; absent until it is exported
logs/            events.log, tables of completions, what traces are made of, logs of the parts
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType

GIT_DEADLINE_S = 5.0
MODEL_STEP = "funicular.json"
"""File of the model's folder that names its step."""


class RunFolderLockedError(RuntimeError):
    """Another driver holds this run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """Paths of one run. `create` also makes the folders; the constructor touches nothing."""

    path: Path
    """Absolute."""

    @classmethod
    def create(cls, path: str | Path) -> RunFolder:
        """Make the folder and what must exist in it. An existing run folder is left as it is.

        Raises:
            ValueError: `path`, or a folder that belongs in it, is a file.
        """
        folder = cls(path=Path(path).absolute())
        for needed in (folder.path, folder.checkpoints, folder.logs):
            try:
                needed.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise ValueError(
                    f"run_dir: {needed} cannot be made, a file is in its place; choose another run_dir"
                ) from error
        return folder

    @property
    def config(self) -> Path:
        """The resolved recipe."""
        return self.path / "config.yaml"

    @property
    def ledger(self) -> Path:
        """The account of every group."""
        return self.path / "ledger.jsonl"

    @property
    def metrics(self) -> Path:
        """One JSON object per line; read with `read_metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The trained model; exists once it is exported."""
        return self.path / "model"

    @property
    def model_step(self) -> int | None:
        """The step of the trained model; None if there is none."""
        mark = self.model / MODEL_STEP
        return json.loads(mark.read_text())["step"] if mark.is_file() else None

    @property
    def logs(self) -> Path:
        """Text for people."""
        return self.path / "logs"

    @property
    def events(self) -> Path:
        """What the run said besides metrics, with times."""
        return self.logs / "events.log"

    @property
    def completions(self) -> Path:
        """Tables of completions, one JSONL file per step."""
        return self.logs / "completions"

    @property
    def traces(self) -> Path:
        """What traces are made of, one JSONL file per step."""
        return self.logs / "traces"

    @property
    def mlflow_run(self) -> Path:
        """Which MLflow run this is."""
        return self.path / "mlflow_run.json"

    def lock(self) -> RunLock:
        """Take the folder for this process until `release`, or until the process ends.

        Raises:
            RunFolderLockedError: another driver has it; the message names its process.
        """
        return RunLock(self.path / ".lock")


class RunLock:
    """An advisory lock (flock) on one file. The kernel drops it when the process dies, however it dies."""

    def __init__(self, path: Path) -> None:
        # O_CLOEXEC is Python's default: a child that is exec'ed does not keep the lock alive.
        self._fd: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(self._fd)
            self._fd = None
            raise RunFolderLockedError(
                f"run folder {path.parent} is in use by {holder}; stop that run, "
                "or give this one another name=... or run_dir=..."
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have the folder. Safe to call twice."""
        if self._fd is not None:
            os.close(self._fd)  # closing drops the lock; the file stays, so that no second file is ever locked
            self._fd = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeVersion:
    """Which code this process runs: tags of the MLflow run, so that stale code is visible."""

    version: str
    """Of the installed package."""
    git_sha: str | None
    """Commit of the checkout, `-dirty` appended when tracked files differ; None outside a checkout."""
    root: str
    """Folder that the modules were loaded from."""


def code_version() -> CodeVersion:
    """Version, commit and root of the code that is running.

    Raises:
        importlib.metadata.PackageNotFoundError: Funicular is not installed.
    """
    root = Path(__file__).resolve().parent.parent
    return CodeVersion(version=metadata.version("funicular"), git_sha=_git_sha(root), root=str(root))


def _git_sha(root: Path) -> str | None:
    # A wheel in a venv inside some checkout must not report that checkout's commit.
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_DEADLINE_S, check=False)
    except (
        OSError,
        subprocess.TimeoutExpired,
    ):  # no git, or a file system that hangs: the version is a help only
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
