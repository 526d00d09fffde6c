"""Against the real MLflow, with SQLite, and against no server at all."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from funicular.launch.checkpoint_files import EVALUATION, MANIFEST, folder_name, write_manifest
from funicular.launch.config import TrackingConfig
from funicular.launch.metrics_sync import back_fill, sync_run
from funicular.launch.mlflow_models import LINK
from funicular.launch.progress import Progress
from funicular.launch.rows import CompletionRow, TraceRow
from funicular.launch.run_folder import MODEL_STEP, RunFolder
from funicular.launch.tracking import Tracker, open_tracker

pytestmark = pytest.mark.integration

ROW = CompletionRow(
    group_id="g1",
    task_id="t1",
    prompt="1+1?",
    completion="zwei ✓",
    answer="2",
    reward=1.0,
    breakdown={"correctness": 1.0},
    status="passed",
    details={},
    tokens=3,
    truncated=False,
    policy_version=4,
)

TRACE = TraceRow(
    rollout=replace(ROW, details={"outcome": "ok", "level": "L3"}),
    member=0,
    messages=({"role": "user", "content": "1+1?"},),
    verifier="code",
    generator="generator-0",
    prompt_tokens=5,
    newest_version=4,
    staleness=1,
    issued_at=1.8e9,
    generated_at=1.8e9 + 0.5,
    scored_at=1.8e9 + 0.75,
    generation_s=0.4,
    scoring_s=0.2,
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder with a recipe; the current directory is elsewhere and must stay clean."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    created = RunFolder.create(tmp_path / "runs" / "a")
    tracking = {"mlflow_uri": None, "experiment": "tests", "registered_model": None, "upload_model": False}
    recipe = {"name": "a", "seed": 3, "tracking": tracking}
    created.config.write_text(yaml.safe_dump(recipe))
    return created


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """The URI of a port that refuses connections: bound, never listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def open_(folder: RunFolder, attempt: int = 1, uri: str | None = None) -> tuple[Tracker, io.StringIO]:
    shown = io.StringIO()
    config = TrackingConfig(experiment="tests", mlflow_uri=uri)
    resumed = 2 if attempt > 1 else None
    tracker = open_tracker(
        folder, config, Progress(10, shown), run_name="a", attempt=attempt, resumed_from_step=resumed
    )
    return tracker, shown


def history(folder: RunFolder, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path.parent}/mlflow.db")
    run_id = json.loads(folder.mlflow_run.read_text())["run_id"]
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))


def test_a_run_is_in_mlflow_with_everything_and_a_resumed_one_goes_on_in_it(folder: RunFolder) -> None:
    tracker, shown = open_(folder)
    tracker.log(0, {"eval/held_out/pass@1": 0.25})
    for step in (1, 2, 3):
        tracker.log(step, {"reward/mean": step / 10, "policy/loss": float("nan")})
    tracker.completions(2, [ROW, ROW])
    tracker.traces(2, [TRACE])
    tracker.event("a generator died")
    tracker.finish("killed")
    assert tracker.mlflow_dropped == 0
    assert "model-metrics?workflowType=machine_learning" in shown.getvalue()

    recipe = yaml.safe_load(folder.config.read_text()) | {"seed": 4}
    folder.config.write_text(yaml.safe_dump(recipe))
    tracker, _ = open_(folder, attempt=2)
    tracker.log(3, {"reward/mean": 0.5})
    tracker.finish("finished")
    assert tracker.mlflow_dropped == 0

    assert history(folder, "reward/mean") == [(1, 0.1), (2, 0.2), (3, 0.3), (3, 0.5)]
    assert history(folder, "eval/held_out/pass_at_1") == [(0, 0.25)]

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path.parent}/mlflow.db")
    note = json.loads(folder.mlflow_run.read_text())
    (run,) = client.search_runs([note["experiment_id"]])
    assert run.info.run_id == note["run_id"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "name": "a",
        "seed": "3",
        "tracking.mlflow_uri": "None",
        "tracking.experiment": "tests",
        "tracking.registered_model": "None",
        "tracking.upload_model": "False",
    }
    assert run.data.tags["attempt"] == "2"
    assert run.data.tags["resumed_from_step"] == "2"
    assert run.data.tags["code_version"]
    assert Path(run.data.tags["code_root"]).is_dir()
    top = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    assert top == {"config.yaml", "config", "environment", "completions", "logs"}
    resumed = Path(client.download_artifacts(run.info.run_id, "config/resume_2.yaml")).read_text()
    assert "seed: 4" in resumed
    environment = Path(client.download_artifacts(run.info.run_id, "environment/attempt_1.txt")).read_text()
    assert "mlflow==" in environment
    path = client.download_artifacts(run.info.run_id, "completions/step_000002_attempt_1.json")
    table = json.loads(Path(path).read_text())
    assert len(table["data"]) == 2
    assert "zwei ✓" in table["data"][0]
    assert list(Path.cwd().iterdir()) == []

    (trace,) = client.search_traces(locations=[note["experiment_id"]], run_id=note["run_id"])
    assert trace.info.tags.items() >= {
        ("step", "2"),
        ("policy_version", "4"),
        ("staleness", "1"),
        ("status", "passed"),
        ("sandbox_outcome", "ok"),
        ("sandbox_level", "L3"),
    }
    assert {feedback.name: feedback.value for feedback in trace.info.assessments} == {
        "reward": 1.0,
        "verdict": "passed",
    }
    assert trace.info.execution_duration == 750
    spans = {span.name: span for span in trace.data.spans}
    assert list(spans) == ["rollout", "task", "generate", "score", "verdict"]
    assert {span.parent_id for span in trace.data.spans} == {None, spans["rollout"].span_id}
    assert spans["generate"].inputs == {"messages": [{"role": "user", "content": "1+1?"}]}
    assert spans["generate"].end_time_ns == spans["score"].start_time_ns == 1_800_000_000_500_000_000
    assert spans["verdict"].outputs == {"reward": 1.0, "status": "passed", "breakdown": {"correctness": 1.0}}


def test_sync_sends_what_mlflow_lacks_once_and_only_the_highest_attempt(
    folder: RunFolder, nobody_listens: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker, shown = open_(folder, uri=nobody_listens)
    tracker.log(1, {"reward/mean": 0.1})
    tracker.log(2, {"reward/mean": 0.2})
    tracker.completions(2, [ROW])
    tracker.traces(2, [TRACE, replace(TRACE, member=1, rollout=replace(ROW, reward=None, status="infra_error"))])
    tracker.begin_attempt(2, resumed_from_step=1)
    tracker.log(2, {"reward/mean": 0.3})
    tracker.finish("finished")
    assert tracker.mlflow_dropped == 3 + 1 + 1 + 1, "records, a table, traces, the tags of the second attempt"
    assert f"funicular metrics sync {folder.path}" in shown.getvalue()
    assert not folder.mlflow_run.exists()

    assert back_fill(folder.path) == 2 * 4 + 1 + 2
    assert history(folder, "reward/mean") == [(1, 0.1), (2, 0.3)]
    assert back_fill(folder.path) == 0
    assert history(folder, "reward/mean") == [(1, 0.1), (2, 0.3)]
    assert "sent 0 values, 0 tables of completions, 0 traces and 0 models" in capsys.readouterr().out


def test_sync_fills_gaps_between_what_a_live_run_sent(folder: RunFolder) -> None:
    tracker, _ = open_(folder)
    tracker.log(1, {"reward/mean": 0.1})
    time.sleep(0.01)  # times are in milliseconds
    tracker.log(1, {"eval/held_out/pass_at_1": 0.5})
    tracker.finish("finished")
    assert back_fill(folder.path) == 0
    with folder.metrics.open("a") as lines:
        lines.write(json.dumps({"step": 2, "attempt": 1, "time": 5.5, "reward/mean": 0.2}) + "\n")
    assert back_fill(folder.path) == 1
    assert history(folder, "reward/mean") == [(1, 0.1), (2, 0.2)]


def test_the_sync_command_explains_a_wrong_folder_and_an_unreachable_server(
    folder: RunFolder,
    nobody_listens: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sync_run(tmp_path) == 2
    assert "has no metrics.jsonl; expected a run folder" in capsys.readouterr().err
    folder.metrics.write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody_listens)
    assert sync_run(folder.path) == 1
    assert nobody_listens.removeprefix("http://").partition(":")[0] in capsys.readouterr().err


def test_passwords_of_the_environment_are_neither_shown_nor_stored(
    folder: RunFolder, nobody_listens: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody_listens.replace("://", "://user:geheim@"))
    tracker, shown = open_(folder)
    tracker.log(1, {"reward/mean": 0.1})
    tracker.finish("finished")
    assert sync_run(folder.path) == 1
    said = capsys.readouterr()
    assert "MLflow cannot be opened" in shown.getvalue()
    assert "geheim" not in shown.getvalue() + said.out + said.err

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder.path.parent}/mlflow.db")
    for name in ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "HF_TOKEN"):
        monkeypatch.setenv(name, "geheim")
    tracker, _ = open_(folder)
    tracker.log(1, {"reward/mean": 0.1})
    tracker.finish("finished")
    assert tracker.mlflow_dropped == 0
    stored = [path for path in folder.path.parent.rglob("*") if path.is_file()]
    assert folder.path.parent / "mlflow.db" in stored
    assert [path for path in stored if b"geheim" in path.read_bytes()] == []


def checkpoint(folder: RunFolder, step: int, pass_at_1: float) -> Path:
    """A complete checkpoint with one file, measured."""
    path = folder.checkpoints / folder_name(step)
    path.mkdir(parents=True)
    (path / "weights").write_text(f"weights of step {step}")
    write_manifest(path, step)
    (path / EVALUATION).write_text(json.dumps({"eval/held_out/pass_at_1": pass_at_1}))
    return path


def test_the_final_and_the_best_model_are_registered_once_with_run_place_and_digest(folder: RunFolder) -> None:
    from mlflow import MlflowClient

    recipe = yaml.safe_load(folder.config.read_text())
    recipe["checkpoint"] = {"path": None, "best_metric": "eval/held_out/pass_at_1"}
    recipe["tracking"]["registered_model"] = "sums"
    folder.config.write_text(yaml.safe_dump(recipe))
    best = checkpoint(folder, 2, 0.9)
    checkpoint(folder, 3, 0.4)
    (folder.model / "adapter").mkdir(parents=True)
    (folder.model / "adapter" / "model.safetensors").write_bytes(b"weights")
    (folder.model / MODEL_STEP).write_text('{"step": 3}')

    tracker, _ = open_(folder)
    tracker.log(3, {"reward/mean": 0.1})
    tracker.models()
    tracker.finish("finished")
    assert tracker.mlflow_dropped == 0

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.path.parent}/mlflow.db")
    run_id = json.loads(folder.mlflow_run.read_text())["run_id"]
    final = client.get_model_version_by_alias("sums", "final")
    command = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    shown = subprocess.run(command, shell=True, cwd=folder.model, capture_output=True, text=True, check=True)
    assert final.run_id == run_id
    assert final.tags == {
        "step": "3",
        "path": str(folder.model),
        "format": "hugging_face",
        "sha256": shown.stdout.split()[0],
        "eval/held_out/pass_at_1": "0.4",
    }
    version = client.get_model_version_by_alias("sums", "best")
    assert (version.tags["step"], version.tags["path"], version.tags["format"]) == ("2", str(best), "checkpoint")
    assert version.tags["sha256"] == hashlib.sha256((best / MANIFEST).read_bytes()).hexdigest()
    link = Path(client.download_artifacts(run_id, version.source.removeprefix(f"runs:/{run_id}/")))
    assert [file.name for file in link.iterdir()] == [LINK], "no weights were copied"
    assert back_fill(folder.path) == 0
    assert len(client.search_model_versions("name = 'sums'")) == 2

    recipe["tracking"] |= {"registered_model": "copied", "upload_model": True}
    folder.config.write_text(yaml.safe_dump(recipe))
    assert back_fill(folder.path) == 2
    source = client.get_model_version_by_alias("copied", "final").source
    copied = Path(client.download_artifacts(run_id, source.removeprefix(f"runs:/{run_id}/")))
    assert (copied / "adapter" / "model.safetensors").read_bytes() == b"weights"
