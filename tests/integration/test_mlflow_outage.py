"""MLflow's server is killed in the middle of a run and comes back: nothing waits for it, and the curves get whole."""

from __future__ import annotations

import importlib.util
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from funicular.launch.config import TrackingConfig
from funicular.launch.metrics_sync import back_fill
from funicular.launch.progress import Progress
from funicular.launch.rows import CompletionRow, TraceRow
from funicular.launch.run_folder import RunFolder
from funicular.launch.tracking import Tracker, open_tracker
from tests.mlflow_server import MlflowServer, postgres, wait_for

pytestmark = pytest.mark.integration


@pytest.fixture(params=["sqlite", "postgres"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MlflowServer]:
    """A running server over a real database."""
    if request.param == "sqlite":
        yield from _serving(tmp_path, f"sqlite:///{tmp_path}/server.db")
        return
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("no psycopg2: it is in the extra postgres")
    try:
        with postgres() as database:
            yield from _serving(tmp_path, database)
    except LookupError as missing:
        pytest.skip(str(missing))


def _serving(folder: Path, database: str) -> Iterator[MlflowServer]:
    server = MlflowServer(folder, database)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def row(step: int, member: int) -> TraceRow:
    """The rollout that a step's trace is made of."""
    return TraceRow(
        rollout=CompletionRow(
            group_id=f"g{step}",
            task_id="t1",
            prompt="1+1?",
            completion="zwei ✓",
            answer="2",
            reward=float(member),
            breakdown={"correctness": float(member)},
            status="passed" if member else "failed",
            details={"outcome": "ok", "level": "L3"},
            tokens=3,
            truncated=False,
            policy_version=step,
        ),
        member=member,
        messages=({"role": "user", "content": "1+1?"},),
        verifier="code",
        generator="generator-0",
        prompt_tokens=5,
        newest_version=step,
        staleness=1,
        issued_at=1.8e9 + step,
        generated_at=1.8e9 + step + 0.5,
        scored_at=1.8e9 + step + 0.75,
        generation_s=0.4,
        scoring_s=0.2,
    )


def steps(tracker: Tracker, numbers: range) -> float:
    """Log these steps as the loop does; the seconds that it waited."""
    began = time.monotonic()
    for step in numbers:
        rows = [row(step, 0), row(step, 1)]
        tracker.log(step, {"reward/mean": step / 10, "policy/loss": -step / 10})
        tracker.completions(step, [one.rollout for one in rows])
        tracker.traces(step, rows)
    return time.monotonic() - began


def test_a_server_killed_in_mid_run_holds_up_nothing_and_back_filling_completes_its_curves(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # what is sent during the outage fails at once
    folder = RunFolder.create(tmp_path / "runs" / "a")
    tracking = {"mlflow_uri": None, "experiment": "outage", "registered_model": None}
    folder.config.write_text(yaml.safe_dump({"name": "a", "tracking": tracking}), encoding="utf-8")
    config = TrackingConfig(experiment="outage")
    tracker = open_tracker(folder, config, Progress(9, io.StringIO()), run_name="a", attempt=1)
    client = MlflowClient(tracking_uri=server.uri)

    def note(key: str) -> str:
        return json.loads(folder.mlflow_run.read_text())[key]

    def history(key: str = "reward/mean") -> list[tuple[int, float]]:
        return sorted((metric.step, metric.value) for metric in client.get_metric_history(note("run_id"), key))

    def traced() -> int:
        experiments = [note("experiment_id")]
        return len(client.search_traces(locations=experiments, run_id=note("run_id"), include_spans=False))

    waited = steps(tracker, range(1, 4))
    wait_for(folder.mlflow_run.exists, 60, lambda: "the run to be opened")
    wait_for(lambda: len(history()) == 3 and traced() == 3 * 2, 60, lambda: "the steps before the outage")
    server.kill()
    waited += steps(tracker, range(4, 7))
    items = 3 * 3  # records, tables, files of traces
    wait_for(lambda: tracker.mlflow_dropped == items, 120, lambda: "the sink to give up on the steps of the outage")
    server.start()
    waited += steps(tracker, range(7, 10))
    tracker.finish("finished")
    assert waited < 2, "logging nine steps waits for no server"
    assert tracker.mlflow_dropped == items
    assert [step for step, _ in history()] == [1, 2, 3, 7, 8, 9], "the outage is a gap"

    values_of_a_step = 2 + 3  # those that were logged, and the accounts of tracking
    assert back_fill(folder.path) == 3 * (values_of_a_step + 1 + 2)
    assert history() == [(step, step / 10) for step in range(1, 10)]
    assert history("policy/loss") == [(step, -step / 10) for step in range(1, 10)]
    (experiment,) = client.search_experiments(filter_string="name = 'outage'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    tables = {entry.path for entry in client.list_artifacts(run.info.run_id, "completions")}
    assert tables == {f"completions/step_{step:06d}_attempt_1.json" for step in range(1, 10)}
    traces = client.search_traces(locations=[experiment.experiment_id], run_id=run.info.run_id)
    assert sorted((trace.info.tags["step"], trace.info.assessments[-1].name) for trace in traces) == [
        (str(step), "reward") for step in range(1, 10) for _ in range(2)
    ]
    assert back_fill(folder.path) == 0
