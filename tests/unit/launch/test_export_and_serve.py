"""What `funicular export` and `funicular serve` make of their words, and what they refuse."""

from __future__ import annotations

import inspect
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.errors import HfHubHTTPError

from funicular.actors.export_checks import ExportError, check_model
from funicular.launch.cli import main
from funicular.launch.serve import server_of
from funicular.launch.serve_options import ServeOptions
from tests.tiny import make_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def value(command: tuple[str, ...], flag: str) -> str:
    return command[command.index(flag) + 1]


def test_a_port_in_use_is_refused_before_vllm_starts(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(model), "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use; expected one that is free" in capsys.readouterr().err


def test_on_a_cpu_the_server_has_the_settings_of_our_engines(model: Path) -> None:
    server = server_of(ServeOptions(model=str(model), kv_cache_gib=0.5), on_cpu=True)
    assert value(server.command, "--model") == str(model)
    assert value(server.command, "--served-model-name") == "tiny"
    assert value(server.command, "--dtype") == "float32"
    assert value(server.command, "--kv-cache-memory-bytes") == str(1 << 29)
    assert "--enforce-eager" in server.command
    assert server.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    on_gpu = server_of(ServeOptions(model=str(model)), on_cpu=False)
    assert "--enforce-eager" not in on_gpu.command
    assert "VLLM_CPU_OMP_THREADS_BIND" not in on_gpu.environment


def test_a_run_folder_stands_for_its_model_and_its_adapter(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run-7"
    (run / "model").parent.mkdir()
    (run / "model").symlink_to(model)
    for name in ("config.yaml", "ledger.jsonl"):
        (run / name).touch()
    adapter = tmp_path / "elsewhere" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"r": 12}))
    options = ServeOptions(model=str(run), loras=(("new", str(adapter.parent)),), further=("--dtype", "bfloat16"))
    command = server_of(options, on_cpu=True).command
    assert value(command, "--model") == str(model)
    assert value(command, "--served-model-name") == "run-7"
    assert value(command, "--lora-modules") == f"new={adapter}"
    assert value(command, "--max-lora-rank") == "16"
    assert command[-2:] == ("--dtype", "bfloat16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "/nowhere"], "FOLDER=/nowhere: no such folder"),
        (["serve", "MODEL", "--lora", "a=/nowhere"], "/nowhere: no adapter there"),
        (["export", "MODEL", "--to", "out"], "not a run folder"),
        (["export", "RUN"], "Give --to FOLDER, --hub OWNER/NAME, or both"),
        (["export", "RUN", "--to", "MODEL"], "it exists; give a new folder"),
        (["export", "RUN", "--to", "out"], "no model and no complete checkpoint yet"),
        (["export", "RUN", "--to", "out", "--step", "4"], "no manifest.json"),
    ],
)
def test_what_is_not_there_is_named(
    words: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "ledger.jsonl").touch()
    assert main(["config", "show", "-c", "embedded"]) == 0
    (run / "config.yaml").write_text(capsys.readouterr().out)
    names = {"MODEL": str(model), "RUN": str(run)}
    assert main([names.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder of a run that has exported its model, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "ledger.jsonl").touch()
    assert main(["config", "show", "-c", "embedded"]) == 0
    (folder / "config.yaml").write_text(capsys.readouterr().out)
    make_tiny_model(folder / "model")
    (folder / "model" / "funicular.json").write_text('{"step": 5}')
    return folder


def test_the_runs_model_is_checked_before_it_is_in_place(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--to", "good"]) == 0
    assert "use_cache is true" in capsys.readouterr().out
    assert not (tmp_path / "good" / "funicular.json").exists()
    config = run / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_cache": False}))
    assert main(["export", str(run), "--to", "bad"]) == 2
    assert "use_cache is False" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "run"]


class FakeHfApi:
    """The hub's client as far as an export needs it; keeps what it is sent. Arguments must be the real one's too."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self.refuses = False

    def create_repo(self, *words: str, **options: Any) -> Any:
        given = inspect.signature(HfApi.create_repo).bind(None, *words, **options).arguments
        assert given["exist_ok"]
        self.private[given["repo_id"]] = given["private"]
        return RepoUrl(f"https://huggingface.co/{given['repo_id']}")

    def upload_folder(self, **options: Any) -> None:
        given = inspect.signature(HfApi.upload_folder).bind(None, **options).arguments
        if self.refuses:
            raise HfHubHTTPError(
                "403 Forbidden", response=httpx.Response(403, request=httpx.Request("POST", "http://x"))
            )
        folder = Path(given["folder_path"])
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.uploaded[given["repo_id"]] = files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHfApi:
    fake = FakeHfApi()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def test_the_hub_gets_the_checked_folder_in_a_private_repository(
    run: Path, hub: FakeHfApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run), "--hub", "me/tiny"]) == 0
    assert "uploaded: https://huggingface.co/me/tiny" in capsys.readouterr().out
    assert hub.private == {"me/tiny": True}
    files = hub.uploaded["me/tiny"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(files)
    assert "funicular.json" not in files
    assert json.loads(files["config.json"])["use_cache"] is True
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_that_fails_its_check_is_not_uploaded(
    run: Path, hub: FakeHfApi, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_cache": False}))
    assert main(["export", str(run), "--hub", "me/tiny"]) == 2
    assert "use_cache is False" in capsys.readouterr().err
    assert (hub.private, hub.uploaded) == ({}, {})


def test_a_hub_that_refuses_is_status_1_and_leaves_no_folder(
    run: Path, hub: FakeHfApi, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses = True
    assert main(["export", str(run), "--hub", "me/tiny", "--to", "out"]) == 1
    assert "not uploaded: 403 Forbidden" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_model_with_a_tensor_too_few_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_tiny_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"missing keys .*layers\.1\.mlp\.up_proj"):
        check_model(folder)


def test_a_template_of_the_recipe_goes_with_the_model(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from funicular.actors.hf_export import write_chat_template
    from funicular.actors.prompts import PLAIN_TEMPLATE

    folder = make_tiny_model(tmp_path / "model")
    own = AutoTokenizer.from_pretrained(folder).chat_template
    write_chat_template(folder, "auto")
    assert AutoTokenizer.from_pretrained(folder).chat_template == own
    write_chat_template(folder, "plain")
    assert AutoTokenizer.from_pretrained(folder).chat_template == PLAIN_TEMPLATE
