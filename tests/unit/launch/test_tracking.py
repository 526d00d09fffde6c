"""Metrics reach the disk first, and nothing that fails there, in the terminal or at MLflow stops training."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.addresses import public_uri
from funicular.launch.metrics_file import MetricsFile, read_metrics
from funicular.launch.mlflow_run import (
    MlflowTarget,
    deep_link,
    flatten,
    metric_name,
    tracking_uri,
)
from funicular.launch.mlflow_sink import MlflowSink, Table, Traces
from funicular.launch.progress import Progress
from funicular.launch.rows import CompletionRow
from funicular.launch.run_folder import RunFolder
from funicular.launch.tracking import Tracker

ROW = CompletionRow(
    group_id="g1",
    task_id="t1",
    prompt="1+1?",
    completion="zwei ✓",
    answer="2",
    reward=None,
    breakdown={"correctness": None},
    status="infra_error",
    details={"why": "the scorer died"},
    tokens=3,
    truncated=False,
    policy_version=4,
)


class FakeSink:
    """Keeps what it is given; on demand it is out of order."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.attempts: list[tuple[int, int | None]] = []
        self.status: str | None = None
        self.dropped = 0
        self.link: str | None = None

    def put(self, item: Any) -> None:
        self.items.append(item)

    def begin_attempt(self, attempt: int, resumed_from_step: int | None) -> None:
        self.attempts.append((attempt, resumed_from_step))

    def close(self, status: str) -> None:
        self.status = status


class FakeRun:
    """An MLflow run that keeps what it is sent; `broken` makes every call fail."""

    link = "http://mlflow/#/run"

    def __init__(self) -> None:
        self.broken = False
        self.records: list[Mapping[str, Any]] = []
        self.tags: dict[str, str] = {}
        self.tables: list[Path] = []
        self.traces: list[Path] = []
        self.status: str | None = None
        self.gate = threading.Event()
        self.gate.set()

    def _check(self) -> None:
        assert self.gate.wait(30)
        if self.broken:
            raise ConnectionError("API request to http://user:secret@mlflow/api failed: server is down")

    def begin(self, attempt: int) -> None:
        self._check()

    def log(self, records: list[Mapping[str, Any]]) -> None:
        self._check()
        self.records += records

    def tag(self, tags: Mapping[str, str]) -> None:
        self._check()
        self.tags |= tags

    def log_table(self, path: Path) -> None:
        self._check()
        self.tables.append(path)

    def log_traces(self, path: Path) -> None:
        self._check()
        self.traces.append(path)

    def finish(self, status: str) -> None:
        self._check()
        self.status = status


class BrokenTerminal(io.StringIO):
    """A terminal that went away."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("gone")


def make_tracker(tmp_path: Path, sink: FakeSink | None = None, attempt: int = 1) -> tuple[Tracker, io.StringIO]:
    shown = io.StringIO()
    return Tracker(RunFolder.create(tmp_path), Progress(10, shown), sink, attempt=attempt), shown


def make_sink(tmp_path: Path, run: FakeRun, **options: Any) -> tuple[MlflowSink, list[str]]:
    said: list[str] = []
    sink = MlflowSink(
        MlflowTarget(uri="http://user:secret@mlflow", experiment="e", run_name="r"),
        RunFolder.create(tmp_path),
        attempt=1,
        resumed_from_step=None,
        say=said.append,
        open_run=lambda target, folder: run,  # type: ignore[arg-type, return-value]
        **options,
    )
    return sink, said


def test_a_logged_step_is_one_line_with_step_attempt_time_and_version(tmp_path: Path) -> None:
    tracker, _ = make_tracker(tmp_path)
    tracker.log(3, {"reward/mean": 0.5, "async/policy_version": 4.0})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    assert len(lines) == 1
    assert record["time"] > 1.7e9
    assert {key: record[key] for key in ("step", "attempt", "policy_version", "reward/mean")} == {
        "step": 3,
        "attempt": 1,
        "policy_version": 4,
        "reward/mean": 0.5,
    }


def test_non_finite_values_are_left_out_and_counted(tmp_path: Path) -> None:
    tracker, _ = make_tracker(tmp_path)
    tracker.log(1, {"policy/loss": float("nan"), "policy/ratio_max": float("inf"), "reward/mean": 1.0})
    tracker.log(2, {"policy/loss": 0.0})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert "policy/loss" not in first
    assert "policy/ratio_max" not in first
    assert first["tracking/nonfinite_dropped"] == 2
    assert second["tracking/nonfinite_dropped"] == 2


def test_names_that_mlflow_refuses_are_the_same_everywhere(tmp_path: Path) -> None:
    sink = FakeSink()
    tracker, _ = make_tracker(tmp_path, sink)
    tracker.log(1, {"eval/held_out/pass@1": 0.5, "reward/../my rewards.py:f(x)": 1.0})
    record = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert record["eval/held_out/pass_at_1"] == 0.5
    assert record["reward/my rewards.py:f_x_"] == 1.0
    assert sink.items == [record]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/./b", "a/b"), ("/a", "a"), ("a//b", "a/b"), ("é", "_"), ("", "_"), ("x" * 300, "x" * 250)],
)
def test_metric_names_are_made_plain(name: str, expected: str) -> None:
    assert metric_name(name) == expected


def test_readers_take_the_highest_attempt_of_each_step_and_join_its_lines(tmp_path: Path) -> None:
    tracker, _ = make_tracker(tmp_path)
    tracker.log(1, {"reward/mean": 0.1})
    tracker.log(2, {"reward/mean": 0.2, "policy/loss": 9.0})
    tracker.begin_attempt(2, resumed_from_step=1)
    tracker.log(2, {"reward/mean": 0.3})
    tracker.log(2, {"eval/held_out/pass_at_1": 0.4})
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert (first["step"], first["attempt"], first["reward/mean"]) == (1, 1, 0.1)
    assert (second["step"], second["attempt"], second["reward/mean"]) == (2, 2, 0.3)
    assert second["eval/held_out/pass_at_1"] == 0.4
    assert "policy/loss" not in second


def test_a_line_cut_off_by_a_kill_loses_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "attempt": 1, "time": 1.0}\n{"step": 2, "att')
    MetricsFile(path, pytest.fail).append({"step": 3, "attempt": 1, "time": 3.0})
    assert [record["step"] for record in read_metrics(path)] == [1, 3]
    assert "line 2" in caplog.text


def test_a_full_disk_is_reported_and_counted_and_training_goes_on(tmp_path: Path) -> None:
    tracker, shown = make_tracker(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    tracker.log(1, {"reward/mean": 0.1})
    assert "WARNING: metrics of step 1 are NOT in" in shown.getvalue()
    assert "No space left on device" in shown.getvalue()
    sink_sees = FakeSink()
    tracker._sink = sink_sees
    tracker.log(2, {"reward/mean": 0.1})
    assert sink_sees.items[0]["tracking/errors"] == 1


def test_a_closed_terminal_does_not_keep_metrics_from_disk_and_mlflow(tmp_path: Path) -> None:
    sink = FakeSink()
    tracker = Tracker(RunFolder.create(tmp_path), Progress(10, BrokenTerminal()), sink, attempt=1)
    tracker.log(1, {"time/step_s": 1.0})
    tracker.event("something")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert len(sink.items) == 1
    assert "something" in (tmp_path / "logs" / "events.log").read_text()


def test_completions_are_in_the_run_folder_and_their_file_goes_to_mlflow(tmp_path: Path) -> None:
    sink = FakeSink()
    tracker, _ = make_tracker(tmp_path, sink, attempt=2)
    tracker.completions(5, [ROW])
    tracker.completions(10, [])
    (table,) = sink.items
    assert isinstance(table, Table)
    assert table.path.name == "step_000005_attempt_2.jsonl"
    row = json.loads(table.path.read_text(encoding="utf-8"))
    assert (row["step"], row["completion"], row["reward"]) == (5, "zwei ✓", None)
    assert json.loads(row["breakdown"]) == {"correctness": None}


def test_a_table_that_could_not_be_written_is_not_sent(tmp_path: Path) -> None:
    sink = FakeSink()
    tracker, _ = make_tracker(tmp_path, sink)
    (tmp_path / "logs" / "completions").write_text("in the way")
    tracker.completions(5, [ROW])
    tracker.log(6, {})
    (record,) = sink.items
    assert record["tracking/errors"] == 1


def test_finish_tells_mlflow_how_the_run_ended(tmp_path: Path) -> None:
    sink = FakeSink()
    tracker, _ = make_tracker(tmp_path, sink)
    tracker.finish("killed")
    assert sink.status == "KILLED"
    assert "attempt 1: run killed" in (tmp_path / "logs" / "events.log").read_text()


def test_what_is_logged_before_mlflow_answers_is_sent_when_it_does(tmp_path: Path) -> None:
    run = FakeRun()
    run.gate.clear()
    sink, said = make_sink(tmp_path, run)
    for step in range(5):
        sink.put({"step": step})
    sink.put(Table(tmp_path / "table.jsonl"))
    sink.put(Traces(tmp_path / "traces.jsonl"))
    sink.begin_attempt(2, 4)
    run.gate.set()
    sink.close("FINISHED", deadline_s=30)
    assert [record["step"] for record in run.records] == [0, 1, 2, 3, 4]
    assert run.tables == [tmp_path / "table.jsonl"]
    assert run.traces == [tmp_path / "traces.jsonl"]
    assert run.tags == {"attempt": "2", "resumed_from_step": "4"}
    assert run.status == "FINISHED"
    assert said == ["MLflow: http://mlflow/#/run"]
    assert sink.dropped == 0


def test_a_full_queue_drops_and_counts_and_says_so_once(tmp_path: Path) -> None:
    run = FakeRun()
    run.gate.clear()
    sink, said = make_sink(tmp_path, run, queue_items=2)
    for step in range(5):
        sink.put({"step": step})
    assert sink.dropped == 3
    assert len(said) == 1
    assert f"funicular metrics sync {tmp_path}" in said[0]
    run.gate.set()
    sink.close("FINISHED", deadline_s=30)
    assert [record["step"] for record in run.records] == [0, 1]


def test_a_server_that_dies_costs_what_was_sent_meanwhile_and_no_more(tmp_path: Path) -> None:
    run = FakeRun()
    sink, said = make_sink(tmp_path, run)
    wait_until(lambda: sink.link is not None)
    run.broken = True
    sink.put({"step": 1})
    wait_until(lambda: sink.dropped == 1)
    run.broken = False
    sink.put({"step": 2})
    sink.close("FAILED", deadline_s=30)
    assert [record["step"] for record in run.records] == [2]
    assert run.status == "FAILED"
    assert any("//mlflow/api failed: server is down; 1 dropped so far" in line for line in said)
    assert not any("secret" in line for line in said)


def test_a_server_that_comes_late_gets_what_the_queue_kept(tmp_path: Path) -> None:
    run = FakeRun()
    run.broken = True
    sink, said = make_sink(tmp_path, run, reconnect_s=0.01)
    sink.put({"step": 1})
    wait_until(lambda: said)
    run.broken = False
    wait_until(lambda: sink.link is not None)
    sink.close("FINISHED", deadline_s=30)
    assert run.records == [{"step": 1}]
    assert "secret" not in said[0]


def test_closing_without_a_server_ends_within_its_deadline_and_counts_what_was_lost(tmp_path: Path) -> None:
    run = FakeRun()
    run.broken = True
    sink, said = make_sink(tmp_path, run)
    sink.put({"step": 1})
    sink.close("FINISHED", deadline_s=30)
    assert sink.dropped == 1
    assert "not sent within 30 s" in said[-1]


def test_the_recipe_beats_the_environment_and_sqlite_beside_the_run_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(path=tmp_path / "runs" / "a")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env")
    assert tracking_uri(folder, "http://recipe") == "http://recipe"
    assert tracking_uri(folder, None) == "http://env"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(folder, None) == f"sqlite:///{tmp_path}/runs/mlflow.db"


def test_a_run_that_goes_on_and_a_sync_go_where_the_run_was_tracked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.create(tmp_path / "runs" / "a")
    beside = f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(folder, None) == beside
    folder.mlflow_run.write_text('{"uri": "http://server", "experiment_id": "1", "run_id": "ab"}')
    assert tracking_uri(folder, None) == "http://server"
    assert tracking_uri(folder, "http://recipe") == "http://recipe"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env")
    assert tracking_uri(folder, None) == "http://env"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for gone in ("sqlite:////before/it/moved.db", "file:///before/it/moved", "mlruns"):
        folder.mlflow_run.write_text(json.dumps({"uri": gone, "experiment_id": "1", "run_id": "ab"}))
        assert tracking_uri(folder, None) == beside
    there = f"sqlite:///{tmp_path}/elsewhere.db"
    folder.mlflow_run.write_text(json.dumps({"uri": there, "experiment_id": "1", "run_id": "ab"}))
    assert tracking_uri(folder, None) == beside
    (tmp_path / "elsewhere.db").touch()
    assert tracking_uri(folder, None) == there


def test_links_open_the_curves_and_hide_passwords() -> None:
    page = "#/experiments/7/runs/ab/model-metrics?workflowType=machine_learning"
    assert deep_link("https://user:secret@host/mlflow/", "7", "ab") == f"https://host/mlflow/{page}"
    local = deep_link("sqlite:////data/my runs/mlflow.db", "7", "ab")
    assert "ui --backend-store-uri 'sqlite:////data/my runs/mlflow.db' --port 5000" in local
    assert local.endswith(f"http://127.0.0.1:5000/{page}")
    assert public_uri("postgresql://u:p@host/db") == "postgresql://host/db"
    assert public_uri("http://me@firm.com:secret@host/a@b") == "http://host/a@b"
    assert public_uri("postgresql://host/db?password=secret&user=u") == "postgresql://host/db?user=u"


def test_parameters_are_flat_and_short() -> None:
    flat = flatten({"a": {"b": 1, "c": {"f.py:g@x": None}}, "d": {}, "e": "x" * 9000})
    assert flat == {"a.b": "1", "a.c.f.py:g_at_x": "None", "d": "{}", "e": "x" * 6000}


def wait_until(condition: Any) -> None:
    """Returns when the condition holds; fails after 30 s."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("the condition did not come to hold")
