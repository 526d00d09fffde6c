"""`submit`, `status`, `logs` and `stop` against a job server that runs nothing: what is sent, said and refused."""

from __future__ import annotations

import io
import json
import shlex
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from funicular.launch import jobs, ray_token
from funicular.launch.cli import main
from tests.fake_job_server import FakeJobServer, serve


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster of this machine. A token, because Ray may have been told to want one before this test."""
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what the commands set is taken back too
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server() -> FakeJobServer:
    return FakeJobServer()


@pytest.fixture
def address(server: FakeJobServer) -> Iterator[str]:
    with serve(server) as where:
        yield where


def test_submit_sends_recipe_code_and_the_time_to_save_itself(
    server: FakeJobServer, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("defaults: [embedded]\nname: my run\nrun_dir: /shared/my\n")
    sent = ["submit", "-c", "my.yaml", "max_steps=3", 'reward.functions={"correctness": 1.0}']
    assert main([*sent, "--address", address, "--env", "HF_HUB_OFFLINE=1", "--stop-wait-s", "77"]) == 0
    (job,) = server.jobs
    words = shlex.split(job["entrypoint"])
    assert words[:4] == ["python", "-m", "funicular.launch.cli", "train"]
    assert words[4:] == ["-c", "my.yaml", "max_steps=3", 'reward.functions={"correctness": 1.0}']
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "77", "HF_HUB_OFFLINE": "1"}
    recipe = server.packages[job["runtime_env"]["working_dir"].rpartition("/")[2]]
    assert zipfile.ZipFile(io.BytesIO(recipe)).namelist() == ["my.yaml"]
    code = [server.packages[uri.rpartition("/")[2]] for uri in job["runtime_env"]["py_modules"]]
    names = {name for package in code for name in zipfile.ZipFile(io.BytesIO(package)).namelist()}
    assert {"funicular/launch/cli.py", "funicular-0.1.0.dist-info/entry_points.txt"} <= names
    printed = capsys.readouterr().out
    assert job["submission_id"].startswith("my-run-")
    assert f"{address}/#/jobs/{job['submission_id']}" in printed
    assert "MLFLOW_TRACKING_URI of the cluster" in printed


def test_the_link_to_mlflow_shows_no_password(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = [
        "submit",
        "-c",
        "embedded",
        "run_dir=/shared/x",
        "--env",
        "MLFLOW_TRACKING_URI=http://me:secret@mlflow:5000",
    ]
    assert main([*sent, "--address", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mlflow"] == "http://mlflow:5000"


def test_code_stays_here_where_the_cluster_has_its_own(server: FakeJobServer, address: str) -> None:
    assert main(["submit", "-c", "embedded", "run_dir=/shared/x", "--no-package", "--address", address]) == 0
    assert server.packages == {}
    assert set(server.jobs[0]["runtime_env"]) == {"env_vars"}


def test_a_wrong_recipe_is_found_before_anything_is_sent(
    server: FakeJobServer, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "-c", "embedded", "max_stepz=3", "--address", address]) == 2
    assert "Did you mean max_steps" in capsys.readouterr().err
    assert main(["submit", "-c", "embedded", "--address", address]) == 2
    assert "run_dir=null: expected an absolute path" in capsys.readouterr().err
    assert main(["submit", "-c", "embedded", "--follow", "--json", "--address", address]) == 2
    assert "expected one of them" in capsys.readouterr().err
    assert server.requests == []


def test_an_address_given_wins_and_must_be_a_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jobs.cluster_address(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert jobs.cluster_address("http://head:8265/") == "http://head:8265"
    with pytest.raises(ValueError, match=r"RAY_ADDRESS=10\.0\.0\.1:6379: expected the address of the cluster's dash"):
        jobs.cluster_address(None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://other:443")
    assert jobs.cluster_address(None) == "https://other:443"


def test_a_refused_token_is_answered_with_where_to_put_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(FakeJobServer(token="right")) as address:
        assert main(["status", "--address", address]) == 1
    said = capsys.readouterr().err
    assert "Authentication required" in said
    assert "`ray get-auth-token` on its head" in said


def test_a_token_that_is_here_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "to be restored")
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    ray_token.use_token()
    assert "RAY_AUTH_MODE" not in ray_token.os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("t" * 64)
    assert ray_token.token_place() == str(tmp_path / ".ray" / "auth_token")
    ray_token.use_token()
    assert ray_token.os.environ["RAY_AUTH_MODE"] == "token"


def test_a_cluster_that_is_not_there_or_says_nothing_is_an_error_in_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jobs, "ANSWER_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert main(["status", "--address", address]) == 1
        assert "no Ray job server answers" in capsys.readouterr().err
        silent.listen()
        assert main(["status", "--address", address]) == 1
        assert "does not answer within" in capsys.readouterr().err


class FakeHeadWithoutAgent(FakeJobServer):
    """The dashboard of a head whose agent did not start."""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if (method, path) == ("POST", "/api/jobs/"):
            return 500, "No available agent to submit job, please try again later."
        return super().answer(method, path, body)


def test_a_head_without_its_agent_is_answered_with_where_its_reason_stands(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(FakeHeadWithoutAgent()) as address:
        assert main(["submit", "-c", "embedded", "run_dir=/shared/x", "--address", address, "--no-package"]) == 1
    said = capsys.readouterr().err
    assert "No available agent to submit job" in said
    assert "dashboard_agent.log" in said


def test_status_lists_jobs_and_shows_one(
    server: FakeJobServer, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"funicular_run": "my run", "funicular_run_dir": "/shared/my"}
    server.add("b-2", "RUNNING", start_time=2_000, metadata=metadata)
    server.add("a-1", "FAILED", start_time=1_000, end_time=31_000, driver_exit_code=2, message="no\nlog")
    assert main(["status", "--address", address]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["a-1", "b-2"]
    assert rows[1].endswith("my run")
    assert main(["status", "a-1", "--address", address]) == 0
    shown = capsys.readouterr().out
    assert "FAILED, exit status 2" in shown
    assert "30 s" in shown
    assert main(["status", "b-2", "--json", "--address", address]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["status"], record["run_dir"], record["ended"]) == ("RUNNING", "/shared/my", None)
    assert main(["status", "c", "--address", address]) == 2
    assert "there is a-1, b-2" in capsys.readouterr().err


def test_logs_are_the_newest_jobs(server: FakeJobServer, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "--address", address]) == 2
    assert "there are no jobs" in capsys.readouterr().err
    server.add("a-1", "RUNNING", start_time=1_000)
    server.printed = "step 1/9\n"
    assert main(["logs", "--address", address]) == 0
    assert capsys.readouterr().out == "step 1/9\n"
    assert server.requests[-1] == "GET /api/jobs/a-1/logs"


def test_logs_as_json_are_the_job_s_record_and_its_text(
    server: FakeJobServer, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("a-1", "FAILED", start_time=1_000, driver_exit_code=2)
    server.printed = "step 1/9\nerror: no such file\n"
    assert main(["status", "a-1", "--json", "--address", address]) == 0
    record = json.loads(capsys.readouterr().out)
    assert main(["logs", "--json", "--address", address]) == 0
    assert json.loads(capsys.readouterr().out) == {**record, "text": server.printed}
    asked = len(server.requests)
    for follow in ("-f", "--follow"):
        assert main(["logs", "a-1", follow, "--json", "--address", address]) == 2
        assert "--follow, --json: expected one of them" in capsys.readouterr().err
    assert len(server.requests) == asked


def test_stop_takes_the_only_running_job(
    server: FakeJobServer, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stop", "--address", address]) == 2
    assert "no job runs" in capsys.readouterr().err
    server.add("a-1", "RUNNING", runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "900"}})
    server.add("b-2", "SUCCEEDED")
    server.printed = "checkpoint step_000012\n"
    assert main(["stop", "--address", address]) == 0
    printed = capsys.readouterr().out
    assert "has 15 min 0 s to finish its step and save" in printed
    assert "checkpoint step_000012" in printed
    assert "a-1: STOPPED; submit again to resume" in printed
    assert main(["stop", "a-1", "--address", address]) == 2
    assert "has ended: STOPPED" in capsys.readouterr().err


def test_stop_asks_which_of_several(server: FakeJobServer, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    server.add("a-1", "RUNNING")
    server.add("b-2", "PENDING")
    assert main(["stop", "--address", address]) == 2
    assert "several jobs run: a-1, b-2; name one" in capsys.readouterr().err
    assert main(["stop", "b-2", "--json", "--address", address]) == 0
    assert json.loads(capsys.readouterr().out)["killed"] is False
    assert [job["status"] for job in server.jobs] == ["RUNNING", "STOPPED"]


def test_a_job_that_was_killed_before_it_had_saved_is_said_to_be(
    server: FakeJobServer, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("a-1", "RUNNING")  # Ray's own wait
    monkeypatch.setattr(jobs, "_RAY_STOP_WAIT_S", 0)
    assert main(["stop", "a-1", "--address", address]) == 1
    assert "Ray killed it after 0 s, before it had saved" in capsys.readouterr().out


def test_a_job_that_does_not_end_is_an_error(
    server: FakeJobServer, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("a-1", "RUNNING")
    server.after_stop = "RUNNING"
    monkeypatch.setattr(jobs, "_RAY_STOP_WAIT_S", 0)
    monkeypatch.setattr(jobs, "_AFTER_KILL_S", 0.5)
    assert main(["stop", "a-1", "--address", address]) == 1
    assert "a-1 is still RUNNING after" in capsys.readouterr().err
