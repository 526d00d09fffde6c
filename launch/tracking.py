"""What the loop tells about a run, and where it goes: `metrics.jsonl` first, then the terminal, Prometheus and
MLflow.

Nothing here raises on behalf of training: a full disk, a closed terminal or an unreachable server is reported
and counted (`tracking/*`), and the run goes on.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Protocol

from funicular.launch.config import TrackingConfig
from funicular.launch.metrics_file import MetricsFile
from funicular.launch.mlflow_run import MlflowTarget, metric_name, tracking_uri
from funicular.launch.mlflow_sink import Item, MlflowSink, Models, Table, Traces
from funicular.launch.progress import Progress
from funicular.launch.rows import CompletionRow, TraceRow
from funicular.launch.run_folder import RunFolder
from funicular.launch.step_gauges import StepGauges

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """What `Tracker` needs of `MlflowSink`."""

    dropped: int
    link: str | None

    def put(self, item: Item) -> None: ...

    def begin_attempt(self, attempt: int, resumed_from_step: int | None) -> None: ...

    def close(self, status: str) -> None: ...


class Tracker:
    """Metrics, tables of completions, traces and events of one run."""

    def __init__(
        self,
        folder: RunFolder,
        progress: Progress,
        sink: Sink | None,
        *,
        attempt: int,
        gauges: StepGauges | None = None,
    ) -> None:
        """Opens no file yet.

        Args:
            sink: None sends nothing to MLflow.
            gauges: None tells Prometheus nothing.
        """
        self._folder = folder
        self._progress = progress
        self._sink = sink
        self._attempt = attempt
        self._gauges = gauges
        self._file = MetricsFile(folder.metrics, progress.error)
        self._nonfinite = 0
        self._errors = 0

    @property
    def link(self) -> str | None:
        """What to open to see the run in MLflow; None without MLflow, or until it answered."""
        return self._sink.link if self._sink else None

    @property
    def mlflow_dropped(self) -> int:
        """Records that MLflow does not have."""
        return self._sink.dropped if self._sink else 0

    def begin_attempt(self, attempt: int, resumed_from_step: int) -> None:
        """From now on lines carry `attempt`: the run went back to the snapshot of `resumed_from_step`."""
        self._attempt = attempt
        self.event(f"attempt {attempt} goes on from step {resumed_from_step}")
        if self._sink:
            self._sink.begin_attempt(attempt, resumed_from_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step, in one call or several. Non-finite values are left out and counted."""
        finite = {metric_name(key): float(value) for key, value in metrics.items() if _is_finite(value)}
        self._nonfinite += len(metrics) - len(finite)
        record: dict[str, Any] = {"step": step, "attempt": self._attempt, "time": round(time.time(), 3)}
        if "async/policy_version" in finite:
            record["policy_version"] = int(finite["async/policy_version"])
        record |= finite
        record["tracking/nonfinite_dropped"] = float(self._nonfinite)
        record["tracking/mlflow_dropped"] = float(self.mlflow_dropped)
        record["tracking/errors"] = float(self._errors + self._file.errors)
        self._survive(lambda: self._file.append(record))
        self._survive(lambda: self._progress.step(step, finite))
        if gauges := self._gauges:
            self._survive(lambda: gauges.set(step, finite))
        self._send(record)

    def completions(self, step: int, rows: Sequence[CompletionRow]) -> None:
        """Record a table of completions: a file of the run folder, then MLflow. No rows: nothing happens."""
        self._write_rows(self._folder.completions, step, [_plain_row(step, row) for row in rows], Table)

    def traces(self, step: int, rows: Sequence[TraceRow]) -> None:
        """Record what traces of a step are made of: a file of the run folder, then MLflow. No rows: nothing happens."""
        plain = [{"step": step, "attempt": self._attempt, **asdict(row)} for row in rows]
        self._write_rows(self._folder.traces, step, plain, Traces)

    def models(self) -> None:
        """Have the run's models registered in MLflow, if the recipe names a registered model."""
        self._send(Models())

    def event(self, text: str) -> None:
        """Record something that happened: in the terminal and in `logs/events.log`."""
        self._survive(lambda: self._progress.event(text))
        self._survive(lambda: self._note(text))

    def finish(self, status: Literal["finished", "failed", "killed"]) -> None:
        """End the run's accounts. Waits for MLflow, but not for ever (`mlflow_sink.FLUSH_DEADLINE_S`)."""
        self._survive(lambda: self._note(f"run {status}"))
        self._file.close()
        if self._sink:
            with self._progress.doing("sending the last metrics to MLflow"):
                self._sink.close(status.upper())

    def _note(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._folder.events.open("a", encoding="utf-8") as log:
            log.write(f"{stamp} attempt {self._attempt}: {text}\n")

    def _write_rows(
        self, folder: Path, step: int, rows: Sequence[Mapping[str, Any]], item: type[Table | Traces]
    ) -> None:
        if not rows:
            return
        path = folder / f"step_{step:06d}_attempt_{self._attempt}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")

        if self._survive(write):
            self._send(item(path))

    def _send(self, item: Item) -> None:
        if self._sink:
            self._sink.put(item)

    def _survive(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except Exception as error:  # a full disk or a closed terminal must not end a training run
            self._errors += 1
            _log.error("tracking: %s: %s", type(error).__name__, error)
            return False
        return True


def open_tracker(
    folder: RunFolder,
    config: TrackingConfig,
    progress: Progress,
    *,
    run_name: str,
    attempt: int,
    resumed_from_step: int | None = None,
) -> Tracker:
    """A tracker for a run whose `config.yaml` is written. Returns at once: a thread opens MLflow.

    Args:
        attempt: 1 for a new run; higher after each return to a snapshot.
        resumed_from_step: the snapshot's step; None for a new run.
    """
    sink = None
    if config.mlflow:
        sink = MlflowSink(
            MlflowTarget(uri=tracking_uri(folder, config.mlflow_uri), experiment=config.experiment, run_name=run_name),
            folder,
            attempt=attempt,
            resumed_from_step=resumed_from_step,
            say=progress.event,
        )
    return Tracker(folder, progress, sink, attempt=attempt, gauges=StepGauges(run_name))


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _plain_row(step: int, row: CompletionRow) -> dict[str, Any]:
    """Nested mappings become text: MLflow's table shows cells."""
    plain: dict[str, Any] = {"step": step, **asdict(row)}
    plain["breakdown"] = json.dumps(plain["breakdown"])
    plain["details"] = json.dumps(plain["details"], ensure_ascii=False)
    return plain
