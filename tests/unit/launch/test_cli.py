"""The command line: exit statuses, what is printed, and what is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from funicular.launch.cli import main
from funicular.launch.config import Config
from funicular.launch.schema_docs import keys, sections


def test_help_and_import_load_nothing_heavy() -> None:
    code = (
        "import sys\nfrom funicular.launch.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch','ray','vllm','deepspeed','mlflow','transformers','omegaconf','rich','numpy','yaml')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    for command in ("train", "score", "eval", "verify", "config", "metrics", "sandbox", "k8s"):
        assert f"    {command} " in done.stdout


def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "funicular.launch.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("funicular 0")


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    command = f"{sys.executable} -m funicular.launch.cli config keys | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("name ")
    assert done.stderr == ""


def test_a_wrong_recipe_prints_every_problem_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "-c", "embedded", "algorithm.kl_coeff=0.1", "steps", "--seed=3"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "3 problems in the recipe:"
    assert "Did you mean algorithm.beta " in lines[1]
    assert "Did you mean max_steps=VALUE" in lines[2]
    assert "--seed=3" in lines[3]
    assert "Traceback" not in printed.err


def test_train_without_a_recipe_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "embedded" in capsys.readouterr().err


def test_config_show_prints_yaml_that_can_be_read_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["config", "show", "-c", "embedded", "seed=3", "-c", "gsm8k_graded", "max_steps=7"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].startswith("# from ")
    assert "max_steps: 7  # command line" in shown
    assert yaml.safe_load(shown)["seed"] == 3
    again = tmp_path / "again.yaml"
    again.write_text(shown)
    assert main(["config", "show", "-c", str(again)]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(shown)


def test_a_warning_goes_to_stderr_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "-c", "embedded", "learner.ranks=9"]) == 0
    assert capsys.readouterr().err.startswith("warning: command line: learner.ranks=9: ")


def test_config_keys_lists_every_key_with_type_default_and_doc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert list(lines) == list(keys())
    assert "grpo | dr_grpo | bnpo" in lines["algorithm.loss"]
    assert "float or null" in lines["algorithm.delta"]
    assert "{correctness: 1.0}" in lines["reward.functions"]
    assert "G: completions per task" in lines["algorithm.group_size"]


def test_every_key_is_documented_in_the_schema() -> None:
    assert [key.name for key in keys().values() if not key.doc] == []
    assert set(sections()) < set(Config.__dataclass_fields__)


def test_config_keys_takes_a_filter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys", "epsilon"]) == 0
    shown = capsys.readouterr().out
    assert "algorithm.epsilon_low" in shown
    assert "learner.ranks" not in shown
    assert main(["config", "keys", "kl_coeff"]) == 2
    assert "did you mean algorithm.beta?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["trian"], "funicular train"),
        (["socre"], "funicular score"),
        (["config", "kyes"], "funicular config keys"),
        (["sandbox", "prob"], "funicular sandbox probe"),
        (["verify", "lose"], "funicular verify loss"),
    ],
)
def test_a_mistyped_command_is_answered_with_the_nearest(
    words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"Did you mean `{nearest}`?" in capsys.readouterr().err


def test_help_of_a_command_with_options_of_its_own_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom funicular.launch.cli import main\n"
        "try:\n    main(['verify', 'loss', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch','ray','vllm','deepspeed','mlflow','transformers','omegaconf','rich','numpy','yaml')\n"
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"
    assert "--completion-tokens N" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--tasks", "3"], "got '3', expected a whole number of at least 4"),
        (["--completions", "many"], "got 'many', expected a whole number of at least 4"),
        (["--layers", "0"], "at least 1"),
        (["--layers", "2", "--random-tiny", "qwen2"], "not allowed with"),
    ],
)
def test_wrong_options_of_verify_are_refused(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["verify", "loss", "-c", "embedded", *words])
    assert complaint in capsys.readouterr().err


def test_verify_checks_the_recipe_and_takes_overrides_between_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["verify", "loss", "-c", "embedded", "max_step=3", "--tasks", "5", "algorithm.beta=-1"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("2 problems in the recipe:")
    assert "max_steps" in error


def test_words_that_no_command_takes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["metrics", "sync", "runs/x", "extra"])
    assert "unexpected: extra" in capsys.readouterr().err


def test_syncing_what_is_no_run_folder_exits_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["metrics", "sync", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
