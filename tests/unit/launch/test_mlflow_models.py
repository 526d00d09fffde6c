"""Which models of a run are entered in the registry."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from funicular.launch.checkpoint_files import EVALUATION, MANIFEST, folder_name, write_manifest
from funicular.launch.checkpoint_store import open_store
from funicular.launch.mlflow_models import model_links
from funicular.launch.run_folder import MODEL_STEP, RunFolder

METRIC = "eval/held_out/pass_at_1"


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "a")


def checkpoint(parent: Path, step: int, value: float | None) -> Path:
    path = parent / folder_name(step)
    path.mkdir(parents=True)
    (path / "weights").write_text(str(step))
    write_manifest(path, step)
    if value is not None:
        (path / EVALUATION).write_text(json.dumps({METRIC: value, "time/evaluate_s": 1.0}))
    return path


def exported(folder: RunFolder, step: int) -> None:
    folder.model.mkdir()
    (folder.model / MODEL_STEP).write_text(json.dumps({"step": step}))


def test_a_run_without_a_model_and_without_measured_checkpoints_has_none(folder: RunFolder) -> None:
    checkpoint(folder.checkpoints, 1, None)
    assert model_links(folder, METRIC, None) == []


def test_a_final_model_that_is_also_the_best_is_one_entry(folder: RunFolder) -> None:
    exported(folder, 4)
    checkpoint(folder.checkpoints, 2, 0.5)
    checkpoint(folder.checkpoints, 4, 0.5)
    (link,) = model_links(folder, METRIC, None)
    assert (link.aliases, link.step, link.format, link.path) == (
        ("final", "best"),
        4,
        "hugging_face",
        str(folder.model),
    )


def test_without_checkpoints_the_final_models_measurements_come_from_the_metrics(folder: RunFolder) -> None:
    exported(folder, 4)
    line = {"step": 4, "attempt": 1, "time": 1.0, METRIC: 0.25, "reward/mean": 0.5}
    folder.metrics.write_text(json.dumps(line) + "\n")
    (link,) = model_links(folder, METRIC, None)
    assert link.metrics == {METRIC: 0.25}


def test_the_best_checkpoint_may_be_in_the_store_only(folder: RunFolder, tmp_path: Path) -> None:
    exported(folder, 4)
    checkpoint(folder.checkpoints, 4, 0.5)
    best = checkpoint(tmp_path / "store" / "a", 2, 0.75)
    final, link = model_links(folder, METRIC, open_store(str(tmp_path / "store"), "a"))
    assert final.aliases == ("final",)
    assert (link.aliases, link.path, link.format) == (("best",), str(best), "checkpoint")
    assert link.sha256 == hashlib.sha256((best / MANIFEST).read_bytes()).hexdigest()
    assert link.metrics == {METRIC: 0.75}
