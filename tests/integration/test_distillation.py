"""A student comes closer to its teacher, on real parts, and a teacher's death does not stop it. Two minutes."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from funicular.actors.prompts import Prompts, load_tokenizer
from funicular.cluster.session import connect, disconnect
from funicular.launch.build import build, demand
from funicular.launch.ledger import Ledger, audit, read_events
from funicular.launch.loop import train
from funicular.launch.metrics_file import read_metrics
from funicular.launch.prepared import Prepared
from funicular.launch.recipe import load_recipe
from funicular.launch.run import Run
from funicular.launch.run_folder import RunFolder
from funicular.launch.tasks import load_tasks
from funicular.launch.teacher_folder import resolve_teacher
from funicular.rewards.types import Task
from tests.builders import make_payload
from tests.fakes import FakeTracker
from tests.publish_helpers import token_logprobs
from tests.tiny import make_tiny_model
from tests.tiny_run import tiny_recipe
from tests.tiny_run import train as train_from_command_line

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

STEPS = 30
TEMPERATURE = 0.9


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@torch.no_grad()
def kl_to_teacher(student: Path, teacher: Path, tasks: list[Task]) -> float:
    """Mean over positions of the student's own completions of KL(student || teacher), over the whole vocabulary."""
    models = [load(student), load(teacher)]
    prompts = Prompts(load_tokenizer(str(student)), "auto")
    torch.manual_seed(0)
    kl = []
    for task in tasks:
        prompt = torch.tensor([prompts.render(task)])
        options = {"do_sample": True, "top_k": 0, "temperature": TEMPERATURE, "num_return_sequences": 4}
        ids = models[0].generate(prompt, max_new_tokens=12, eos_token_id=None, pad_token_id=0, **options)
        positions = slice(prompt.shape[1] - 1, -1)
        mine, theirs = ((m(ids).logits[:, positions] / TEMPERATURE).log_softmax(-1) for m in models)
        kl.append(float((mine.exp() * (mine - theirs)).sum(-1).mean()))
    return statistics.fmean(kl)


async def distilled(folder: Path, *overrides: str) -> tuple[Run, list[Task]]:
    """A tiny student, and a teacher with its tokenizer and other weights; held-out tasks besides."""
    recipe = tiny_recipe(folder)
    make_tiny_model(folder / "teacher", seed=1)
    loaded = load_recipe([str(recipe)], [f"distillation.teacher={folder / 'teacher'}", *overrides])
    config = loaded.config
    run_folder = RunFolder.create(folder / "run")
    session = connect(config.cluster, demand(config))
    student = Path(config.model.path)
    tasks = load_tasks(config.data, config.reward.verifier, config.seed)
    prepared = Prepared(
        folder=run_folder,
        recipe_folder=loaded.folder,
        tasks=tasks,
        model_folder=student,
        snapshot=None,
        teacher_folder=resolve_teacher(config, student, lambda text: None),
    )
    tracker: Any = FakeTracker()
    run = await build(config, prepared, use_gpu=session.use_gpu, tracker=tracker, ledger=Ledger(run_folder.ledger))
    return run, list(tasks.held_out[:8])


async def kill_teacher_after(run: Run, step: int) -> None:
    while run.step < step:
        await asyncio.sleep(0.02)
    actor = run.teachers._members[0].actor  # type: ignore[union-attr]
    os.kill(await actor.__ray_call__.remote(lambda self: os.getpid()), signal.SIGKILL)


async def assert_the_teacher_says_what_its_model_says(run: Run, folder: Path) -> None:
    """In chunks too: the engine takes 64 tokens at once."""
    assert run.teachers is not None
    payload = make_payload("g", lengths_G=[5, 12, 1], prompt_tokens=90)
    record, said = await run.teachers.score("g", ray.put(payload))
    assert record.finite_G == (True,) * 3
    logprobs, model = (await said).logprobs, load(folder)
    for index in range(3):
        part = payload.completion(index)
        ids = [*payload.prompt_ids.tolist(), *payload.token_ids[part].tolist()]
        expected = token_logprobs(model, ids, TEMPERATURE)[89:]
        np.testing.assert_allclose(logprobs[part], expected, atol=1e-4, rtol=0)


async def test_on_policy_distillation_halves_the_kl_to_the_teacher_though_the_teacher_dies_once(tmp_path: Path) -> None:
    try:
        run, held_out = await distilled(
            tmp_path,
            f"max_steps={STEPS}",
            "algorithm.group_size=8",
            "algorithm.groups_per_step=8",
            f"generator.temperature={TEMPERATURE}",
            "generator.max_sequences=64",
            "learner.learning_rate=4e-3",
            "learner.adam_beta2=0.95",
            "learner.schedule=cosine",
            "learner.micro_batch_tokens=4096",
            "distillation.kv_cache_gib=0.2",
            "distillation.cpu_threads=1",
            "distillation.max_batch_tokens=64",
            "distillation.max_sequences=16",
            "evaluation.tasks=0",
            "checkpoint.every=0",
        )
        death = asyncio.create_task(kill_teacher_after(run, 3))
        assert await asyncio.wait_for(train(run), 600) == "finished"
        await death
        await run.learners.export(str(tmp_path / "trained"))
        await assert_the_teacher_says_what_its_model_says(run, tmp_path / "teacher")
    finally:
        disconnect()
    assert [death.partition(":")[0] for death in run.budget.deaths] == ["teacher-0"]
    account = audit(tmp_path / "run" / "ledger.jsonl")
    assert account.problems == []
    assert len(account.trained) == 8 * STEPS
    lines = [metrics for _, metrics in run.tracker.lines if "distillation/kl" in metrics]  # type: ignore[attr-defined]
    sampled = [metrics["distillation/kl"] for metrics in lines]
    assert statistics.fmean(sampled[-5:]) < 0.6 * statistics.fmean(sampled[:3])
    assert max(metrics["mismatch/logprob_abs_mean"] for metrics in lines) < 1e-3
    before, after = (kl_to_teacher(tmp_path / name, tmp_path / "teacher", held_out) for name in ("model", "trained"))

    assert after < 0.5 * before, f"KL {before:.3f} -> {after:.3f}"


def test_given_completions_are_learnt_without_a_generator(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    done = train_from_command_line(
        recipe,
        "data.completion_column=answer",
        "distillation.loss=hard",
        "algorithm.group_size=1",
        "algorithm.groups_per_step=16",
        "max_steps=8",
        "evaluation.tasks=0",
        "run_dir=given",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [line for line in read_metrics(tmp_path / "given" / "metrics.jsonl") if "distillation/loss" in line]
    losses = [line["distillation/loss"] for line in lines]
    assert losses[-1] < 0.7 * losses[0]
    assert not any(name.startswith(("mismatch/", "async/staleness")) for line in lines for name in line)
    events = read_events(tmp_path / "given" / "ledger.jsonl")
    made = [event for event in events if event["event"] == "generated"]
    assert {(event["generator"], event["oldest"], event["newest"]) for event in made} == {("encoder-0", None, None)}
    assert audit(tmp_path / "given" / "ledger.jsonl").problems == []
