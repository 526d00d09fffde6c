"""Whole runs from the command line, on real parts: Ray, vLLM, DeepSpeed, and the scorer's processes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from funicular.launch.ledger import audit, read_events
from funicular.launch.metrics_file import read_metrics
from tests.tiny_run import tiny_recipe, train, train_command

pytestmark = pytest.mark.integration


def step_metric(run_dir: Path, name: str) -> list[float]:
    return [line[name] for line in read_metrics(run_dir / "metrics.jsonl") if name in line]


def test_two_tp2_generators_and_two_zero3_lora_ranks_at_staleness_0_and_2(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = tiny_recipe(tmp_path)
    shape = ["generator.count=2", "generator.tensor_parallel_size=2", "learner.ranks=2", "learner.zero_stage=3"]
    lora = ["learner.lora_rank=4", "learner.lora_alpha=8"]
    lockstep = train(recipe, *shape, *lora, "run_dir=lockstep", "max_staleness=0")
    assert lockstep.returncode == 0, lockstep.stdout[-3000:] + lockstep.stderr[-3000:]
    run_dir = tmp_path / "lockstep"
    assert max(step_metric(run_dir, "async/staleness_max")) == 0
    assert max(step_metric(run_dir, "mismatch/logprob_abs_mean")) < 1e-3
    assert audit(run_dir / "ledger.jsonl").problems == []
    config = json.loads((run_dir / "model" / "config.json").read_text())
    assert config["use_cache"] is True
    assert (run_dir / "model" / "adapter" / "adapter_model.safetensors").is_file()
    AutoModelForCausalLM.from_pretrained(run_dir / "model")
    assert AutoTokenizer.from_pretrained(run_dir / "model").chat_template

    # The exported model is the next run's: vLLM loads it, and the learner's first publish matches it.
    ahead = train(recipe, *shape, *lora, "run_dir=ahead", "max_staleness=2", f"model.path={run_dir / 'model'}")
    assert ahead.returncode == 0, ahead.stdout[-3000:] + ahead.stderr[-3000:]
    staleness = step_metric(tmp_path / "ahead", "async/staleness_max")
    assert 0 < max(staleness) <= 2
    assert audit(tmp_path / "ahead" / "ledger.jsonl").problems == []


def test_a_run_killed_at_a_random_moment_resumes_and_accounts_for_every_group(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    overrides = ["run_dir=run", "max_steps=12", "max_staleness=1", "evaluation.tasks=0", "checkpoint.every=3"]
    overrides.append(f"checkpoint.path=file://{tmp_path}/store")
    ledger = tmp_path / "run" / "ledger.jsonl"

    # SIGTERM: the step under way is finished and saved, the exit status says that the run is not done.
    stopped = start(recipe, overrides, tmp_path)
    wait_for_step(ledger, 1, stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(timeout=120) == 143
    saved = max(event["step"] for event in read_events(ledger) if event["event"] == "trained")
    assert (tmp_path / "run" / "checkpoints" / f"step_{saved:06d}" / "manifest.json").is_file()

    # kill -9, while the resumed run trains.
    killed = start(recipe, overrides, tmp_path)
    wait_for_step(ledger, saved + 1, killed)
    time.sleep(random.random() * 2)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(timeout=60)

    done = train(recipe, *overrides)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    account = audit(ledger)
    assert account.problems == []
    assert account.open == []
    assert sorted(account.trained_tasks) == list(range(1, 13))
    versions = [event["version"] for event in read_events(ledger) if event["event"] == "published"]
    assert versions == sorted(set(versions))

    # The tasks are those of a run that nobody disturbed.
    calm = train(recipe, *overrides, "run_dir=calm", "checkpoint.every=0", "checkpoint.path=null")
    assert calm.returncode == 0
    assert account.trained_tasks == audit(tmp_path / "calm" / "ledger.jsonl").trained_tasks

    # Another machine, of which there is more: ledger and learner come from the store.
    shape = ["learner.ranks=2", "learner.zero_stage=2"]
    moved = train(recipe, *overrides, *shape, "run_dir=elsewhere", "max_steps=14")
    assert moved.returncode == 0, moved.stdout[-3000:] + moved.stderr[-3000:]
    account = audit(tmp_path / "elsewhere" / "ledger.jsonl")
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, 15))
    assert step_metric(tmp_path / "elsewhere", "time/checkpoint_background_s")
    trained = [line["step"] for line in read_metrics(tmp_path / "elsewhere" / "metrics.jsonl") if "time/step_s" in line]
    assert trained == [13, 14]
    stored = sorted(path.name for path in (tmp_path / "store" / "tiny").iterdir())
    assert stored == ["step_000012", "step_000014"]
    went_elsewhere = train(recipe, *overrides, "max_steps=15")
    assert went_elsewhere.returncode == 2
    assert "was taken in another history" in went_elsewhere.stderr

    again = train(recipe, *overrides, "resume=never")
    assert again.returncode == 2
    assert "resume=never" in again.stderr


def start(recipe: Path, overrides: list[str], folder: Path) -> subprocess.Popen[bytes]:
    log = (folder / "driver.out").open("ab")
    return subprocess.Popen(train_command(recipe, *overrides), cwd=folder, stdout=log, stderr=log)


def wait_for_step(ledger: Path, step: int, driver: subprocess.Popen[bytes], deadline_s: float = 400) -> None:
    """Until the ledger says that `step` is trained, in this attempt or an earlier one."""
    began = time.monotonic()
    while time.monotonic() - began < deadline_s:
        assert driver.poll() is None, f"the driver ended with {driver.returncode}"
        if ledger.exists() and any(
            event["event"] == "trained" and event["step"] >= step for event in read_events(ledger)
        ):
            return
        time.sleep(0.3)
    raise TimeoutError(f"step {step} was not trained within {deadline_s:.0f} s")
