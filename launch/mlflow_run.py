"""One MLflow run: where it is kept, how it is made or resumed, and what is written to it.

Every call here may block for as long as the server takes: training reaches it only through `mlflow_sink.py`.
mlflow is imported inside functions, because that takes seconds.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from funicular.launch.addresses import public_uri
from funicular.launch.checkpoint_store import open_store
from funicular.launch.environment import environment_report
from funicular.launch.metrics_file import RECORD_KEYS
from funicular.launch.mlflow_models import model_links, register
from funicular.launch.mlflow_traces import MlflowTraces
from funicular.launch.run_folder import CodeVersion, RunFolder, code_version

UI_PORT = 5000
_BATCH = 1000  # most metrics that MLflow takes in one call
_PARAMS = 100  # most parameters
_PARAM_CHARACTERS = 6000
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default, 7 with back-off, takes four minutes per call
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}

Point = tuple[str, int, int]
"""A metric's key, step and time in milliseconds: what makes two points the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowTarget:
    """Where a run is to be tracked."""

    uri: str
    experiment: str
    run_name: str


def tracking_uri(folder: RunFolder, configured: str | None) -> str:
    """The recipe's `tracking.mlflow_uri`, else MLFLOW_TRACKING_URI, else where the run was tracked before: another
    terminal may lack the variable. At first, SQLite beside the run folder."""
    named = configured or os.environ.get("MLFLOW_TRACKING_URI")
    return named or _tracked_before(folder) or f"sqlite:///{folder.path.parent / 'mlflow.db'}"


def _tracked_before(folder: RunFolder) -> str | None:
    """None: nowhere yet, or in files that are not there any more, as when they moved along with the folder."""
    if not folder.mlflow_run.exists():
        return None
    uri = str(json.loads(folder.mlflow_run.read_text(encoding="utf-8"))["uri"])
    scheme, _, place = uri.partition("://")
    if scheme == "sqlite":
        return uri if Path(place.removeprefix("/")).is_file() else None
    return uri if place and scheme != "file" else None


def deep_link(uri: str, experiment_id: str, run_id: str) -> str:
    """What to open to see the run's curves; for a database, the command that serves it comes first.

    MLflow's start page is its GenAI view, which hides training curves; the link's `workflowType` avoids it.
    """
    page = f"#/experiments/{experiment_id}/runs/{run_id}/model-metrics?workflowType=machine_learning"
    if uri.startswith(("http://", "https://")):
        return f"{public_uri(uri).rstrip('/')}/{page}"
    mlflow = "mlflow" if shutil.which("mlflow") else f"{shlex.quote(sys.executable)} -m mlflow"
    return (
        f"{mlflow} ui --backend-store-uri {shlex.quote(public_uri(uri))} --port {UI_PORT}\n"
        f"then http://127.0.0.1:{UI_PORT}/{page}"
    )


def metric_name(name: str) -> str:
    """`name` as MLflow takes it: `@` becomes `_at_`, other refused characters `_`, paths in it plain."""
    name = re.sub(r"[^\w\-. :/;]", "_", name.replace("@", "_at_"), flags=re.ASCII)
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250] or "_"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys joined by dots, values as text: parameters of an MLflow run."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[metric_name(name)] = str(value)[:_PARAM_CHARACTERS]
    return flat


class MlflowRun:
    """An open MLflow run. Errors are MLflow's own (`MlflowException`) and the network's."""

    def __init__(self, target: MlflowTarget, folder: RunFolder) -> None:
        """Find the run that the folder remembers, or make one, with parameters, tags and environment.

        Raises:
            Exception: whatever the store raises; nothing is remembered then, and the call may be repeated.
        """
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self.uri = target.uri
        self._folder = folder
        self._client = MlflowClient(tracking_uri=target.uri)
        remembered = self._remembered()
        if remembered is not None:
            self.experiment_id, self.run_id = remembered
        else:
            draft = folder.mlflow_run.with_suffix(".tmp")
            draft.touch()  # a folder that cannot be written must not cost one new run per try
            self.experiment_id = self._experiment(target.experiment)
            self.run_id = self._client.create_run(
                self.experiment_id, run_name=target.run_name, tags=_tags(code_version(), folder)
            ).info.run_id
            note = {"uri": public_uri(self.uri), "experiment_id": self.experiment_id, "run_id": self.run_id}
            draft.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
            draft.replace(folder.mlflow_run)

    @property
    def link(self) -> str:
        """See `deep_link`."""
        return deep_link(self.uri, self.experiment_id, self.run_id)

    @property
    def described(self) -> bool:
        """Whether the run has its parameters."""
        return bool(self._client.get_run(self.run_id).data.params)

    def begin(self, attempt: int) -> None:
        """Mark the run as running. Parameters and recipe of a new run; of a resumed one the recipe as
        `config/resume_N.yaml`, because MLflow refuses a parameter that changed."""
        self._client.update_run(self.run_id, status="RUNNING")
        if self.described:
            text = self._folder.config.read_text(encoding="utf-8")
            self._client.log_text(self.run_id, text, f"config/resume_{attempt}.yaml")
        else:
            self.describe()
        self._client.log_text(self.run_id, environment_report(), f"environment/attempt_{attempt}.txt")

    def describe(self) -> None:
        """Parameters and recipe of a new run."""
        self._log_params(yaml.safe_load(self._folder.config.read_text(encoding="utf-8")) or {})
        self._client.log_artifact(self.run_id, str(self._folder.config))

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)

    def log(self, records: Iterable[Mapping[str, Any]], known: frozenset[Point] = frozenset()) -> int:
        """Send the values of records of `metrics.jsonl`, but for those `known`; returns how many."""
        from mlflow.entities import Metric

        metrics = []
        for record in records:
            step, millis = int(record["step"]), round(float(record["time"]) * 1000)
            values = {key: value for key, value in record.items() if key not in RECORD_KEYS}
            metrics += [
                Metric(key, float(value), millis, step)
                for key, value in values.items()
                if (key, step, millis) not in known
            ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH], synchronous=True)
        return len(metrics)

    def points(self) -> frozenset[Point]:
        """Every metric value that the run has."""
        keys = self._client.get_run(self.run_id).data.metrics
        return frozenset(
            (key, metric.step, metric.timestamp)
            for key in keys
            for metric in self._client.get_metric_history(self.run_id, key)
        )

    def log_table(self, path: Path) -> None:
        """Send a JSONL file of the run's folder `completions` as a table, which MLflow shows page by page."""
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        columns = {key: [row[key] for row in rows] for key in rows[0]}
        self._client.log_table(self.run_id, columns, _table_name(path))

    def has_table(self, path: Path) -> bool:
        """Whether the run has the table of this file."""
        name = _table_name(path)
        return any(entry.path == name for entry in self._client.list_artifacts(self.run_id, "completions"))

    def log_traces(self, path: Path, known: frozenset[str] = frozenset()) -> int:
        """Send the traces of a JSONL file of the run's folder `traces`, but for those `known`; returns how many."""
        return MlflowTraces(self.uri, self.experiment_id, self.run_id).send(path, known)

    def traces(self) -> frozenset[str]:
        """Ids of the traces that the run has."""
        return MlflowTraces(self.uri, self.experiment_id, self.run_id).known()

    def register_models(self) -> int:
        """Register what models the run folder has now, if the recipe names a registered model; how many were new."""
        config = yaml.safe_load(self._folder.config.read_text(encoding="utf-8"))
        name = config["tracking"].get("registered_model")  # folders of earlier versions do not say
        if name is None:
            return 0
        checkpoint = config["checkpoint"]
        store = open_store(checkpoint["path"], config["name"]) if checkpoint["path"] else None
        links = model_links(self._folder, checkpoint["best_metric"], store)
        return register(self._client, self.run_id, name, links, upload=config["tracking"]["upload_model"])

    @property
    def status(self) -> str:
        """MLflow's word: RUNNING, FINISHED, FAILED, KILLED."""
        return str(self._client.get_run(self.run_id).info.status)

    def finish(self, status: str) -> None:
        """Send the event log and end the run: FINISHED, FAILED or KILLED."""
        if self._folder.events.exists():
            self._client.log_artifact(self.run_id, str(self._folder.events), "logs")
        self._client.set_terminated(self.run_id, status=status)

    def _remembered(self) -> tuple[str, str] | None:
        from mlflow.exceptions import MlflowException

        if not self._folder.mlflow_run.exists():
            return None
        run_id = json.loads(self._folder.mlflow_run.read_text(encoding="utf-8"))["run_id"]
        try:
            info = self._client.get_run(run_id).info
        except MlflowException as error:
            # The folder was copied, or tracking points at another server: a new run is made there.
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return info.experiment_id, run_id

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        # A database says nothing of files, and MLflow would put them into the current directory.
        local = not self.uri.startswith(("http://", "https://"))
        artifacts = (self._folder.path.parent / "mlartifacts").as_uri() if local else None
        try:
            return str(self._client.create_experiment(name, artifact_location=artifacts))
        except MlflowException as error:
            known = self._client.get_experiment_by_name(name)  # another run may have made it in the meantime
            if known is None:
                raise error
            return str(known.experiment_id)

    def _log_params(self, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(key, value) for key, value in flatten(config).items()]
        for start in range(0, len(params), _PARAMS):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS], synchronous=True)


def attempt_tags(attempt: int, resumed_from_step: int | None) -> dict[str, str]:
    """Tags that change when a run goes back to a snapshot."""
    tags = {"attempt": str(attempt)}
    if resumed_from_step is not None:
        tags["resumed_from_step"] = str(resumed_from_step)
    return tags


def _tags(code: CodeVersion, folder: RunFolder) -> dict[str, str]:
    tags = {
        # getpass.getuser() raises in a container whose user has no name.
        "mlflow.user": os.environ.get("USER") or os.environ.get("LOGNAME") or f"uid {os.getuid()}",
        "mlflow.source.name": "funicular",
        "code_version": code.version,
        "code_root": code.root,
        "run_dir": str(folder.path),
    }
    if code.git_sha is not None:
        tags |= {"git_sha": code.git_sha, "mlflow.source.git.commit": code.git_sha}
    return tags


def _table_name(path: Path) -> str:
    return f"completions/{path.stem}.json"
