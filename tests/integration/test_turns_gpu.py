"""Learner and generator in turns on one GPU. Meant to take a quarter of an hour with `test_learner_absence.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.launch.metrics_file import read_metrics
from funicular.launch.models import resolve_model
from tests.engines import Engine
from tests.publish_helpers import publish

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

FRACTION = 0.5
"""Of the GPU's memory, the engine's."""


async def test_an_engine_frees_its_memory_and_serves_again() -> None:
    from transformers import AutoModelForCausalLM

    from funicular.actors.generator import Generator

    folder = resolve_model("smollm2-135m", print)
    config = GeneratorConfig(
        max_prompt_tokens=64, max_completion_tokens=64, dtype="bfloat16", gpu_memory_fraction=FRACTION
    )
    generator = Generator(
        "generator-0",
        config,
        WeightSyncConfig(deadline_s=120.0),
        model_folder=str(folder),
        chat_template="auto",
        seed=0,
        use_gpu=True,
        shared_gpus="0",
    )
    engine = Engine(generator, folder)
    await generator.start()
    try:
        weights = publish(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), 1, dtype=torch.bfloat16)
        await engine.install(weights)
        await engine.generate()
        awake, total = torch.cuda.mem_get_info()
        for _ in range(3):
            await generator.sleep()
            assert torch.cuda.mem_get_info()[0] - awake > 0.8 * FRACTION * total
            await generator.wake()
            await engine.install(weights)
            await engine.generate()
            assert abs(torch.cuda.mem_get_info()[0] - awake) < 0.05 * total
    finally:
        await generator.stop()


def test_a_run_on_one_gpu(tmp_path: Path) -> None:
    overrides = ["cluster.colocate=true", "max_staleness=0", "max_steps=4", "evaluation.every=2", "checkpoint.every=2"]
    overrides += ["generator.gpu_memory_fraction=0.6", "learner.zero_stage=1", "tracking.mlflow=false", "run_dir=run"]
    command = [sys.executable, "-m", "funicular.launch.cli", "train", "-c", "embedded", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "time/gpu_turns_s" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert max(line["mismatch/logprob_abs_mean"] for line in lines) < 0.1
    assert max(line["async/staleness_max"] for line in lines) == 0
