"""`funicular verify loss` on a tiny model, with real DeepSpeed ranks: it passes, and it fails when it must."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from funicular.launch.recipe import load_recipe
from funicular.launch.verify_loss import FAILED, PASSED, verify_loss
from funicular.launch.verify_options import VerifyOptions
from tests.faulty_ranks import RankThatAveragesEachPass, RankThatForgetsItsPeers
from tests.tiny_run import tiny_recipe

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe(tmp_path_factory.mktemp("verify"))


def test_the_command_prints_a_passing_certificate(recipe: Path) -> None:
    file = recipe.parent / "certificate.json"
    words = ["verify", "loss", "-c", str(recipe), "--json", str(file), "learner.compute_dtype=bfloat16"]
    done = subprocess.run(
        [sys.executable, "-m", "funicular.launch.cli", *words],
        cwd=recipe.parent,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == PASSED, done.stdout + done.stderr
    assert "2 void" in done.stdout
    assert "rewards   drawn by chance (seed 0), not by exact_number" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("PASS: 12 float32 cuts, largest error ")
    record = json.loads(file.read_text())
    errors = {cut["cut"]: cut["relative_error"] for cut in record["cuts"]}
    assert all(errors[f"2 ranks, ZeRO {stage}, a row a pass"] < 1e-5 for stage in range(4))
    sharing = {cut["cut"]: (cut["judged"], cut["prompts_shared"]) for cut in record["cuts"] if "prompts_shared" in cut}
    names = ["1 rank, one pass, prompts shared", "2 ranks, ZeRO 3, prompts shared"]
    assert sharing == dict.fromkeys(names, (True, True))
    assert max(errors[name] for name in names) < 1e-5
    assert 1e-4 < errors["recipe's learner, own types"] < 0.5
    assert len(record["cuts"][0]["parameters"]) == 20


@pytest.mark.parametrize(
    ("rank_class", "wrong", "right"),
    [
        (RankThatForgetsItsPeers, "2 ranks, ZeRO 2, a row a pass", "1 rank, a row a pass"),
        (RankThatAveragesEachPass, "1 rank, a row a pass", None),
    ],
)
def test_a_broken_learner_fails(
    rank_class: type,
    wrong: str,
    right: str | None,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(recipe.parent)
    file = recipe.parent / "broken.json"
    loaded = load_recipe([str(recipe)], ["learner.ranks=2", "learner.zero_stage=1"])
    options = VerifyOptions(completion_tokens=12, json_file=file)
    assert verify_loss(loaded, options, rank_class) == FAILED
    errors = {cut["cut"]: cut["relative_error"] for cut in json.loads(file.read_text())["cuts"]}
    assert errors[wrong] > 0.1
    assert right is None or errors[right] < 1e-5
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("FAIL: ")
    assert wrong in verdict
