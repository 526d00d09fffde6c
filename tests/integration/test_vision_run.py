"""A whole run with images, from the command line: files and data: URIs, mixed with tasks of text."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from funicular.launch.ledger import audit
from funicular.launch.metrics_file import read_metrics
from tests.tiny_run import RECIPE, REWARD, train
from tests.tiny_vision import make_tiny_vision_model, picture_bytes

pytestmark = pytest.mark.integration


def vision_recipe(folder: Path) -> Path:
    """Write model, data, reward function and recipe; the recipe's path."""
    make_tiny_vision_model(folder / "model")
    (folder / "data").mkdir()
    rows = []
    for n in range(24):
        data = picture_bytes(28 * (1 + n % 3), 28 * (1 + n % 2), seed=n)
        (folder / "data" / f"{n}.png").write_bytes(data)
        uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        images = [f"{n}.png", [uri], [f"{n}.png", uri], []][n % 4]
        rows.append({"prompt": f"Count number {n}.", "images": images, "answer": str(n)})
    (folder / "data" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    recipe = folder / "vision.yaml"
    text = RECIPE.replace("MODEL", str(folder / "model"))
    rows_file = f"data: {{path: {folder}/data/rows.jsonl, images_column: images, held_out_fraction: 0.2}}"
    lines = [rows_file if line.startswith("data:") else line for line in text.splitlines()]
    recipe.write_text("\n".join(lines) + "\n")
    return recipe


def test_two_zero3_ranks_train_the_tower_too_and_the_model_is_written(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    recipe = vision_recipe(tmp_path)
    shape = ["learner.ranks=2", "learner.zero_stage=3", "learner.freeze_vision=false", "max_steps=2"]
    done = train(recipe, *shape, "run_dir=run", "max_staleness=0", "evaluation.tasks=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    mismatch = [line["mismatch/logprob_abs_mean"] for line in lines if "mismatch/logprob_abs_mean" in line]
    assert len(mismatch) == 2
    assert max(mismatch) < 1e-3
    assert audit(tmp_path / "run" / "ledger.jsonl").problems == []
    trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "model")
    initial = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    tower, before = trained.model.visual.patch_embed.proj.weight, initial.model.visual.patch_embed.proj.weight
    assert not tower.equal(before)
    AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")


def test_a_model_of_text_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    from tests.tiny import make_tiny_model

    recipe = vision_recipe(tmp_path)
    make_tiny_model(tmp_path / "text")
    done = train(recipe, f"model.path={tmp_path / 'text'}", "run_dir=run")
    assert done.returncode == 2
    assert "18 tasks have images, and this model reads none" in done.stderr
