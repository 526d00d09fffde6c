"""What comes after training, on one small run: export, evaluation, and a server that the openai client asks."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_run import tiny_recipe, train

pytestmark = pytest.mark.integration

QUESTION = [{"role": "user", "content": "What is 12 + 30?"}]
TOKENS = 12


def funicular(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "funicular.launch.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and `run`, whose adapters were trained for three steps."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny_recipe(folder)
    lora = ["learner.lora_rank=4", "learner.lora_alpha=64", "learner.learning_rate=2e-2"]
    done = train(recipe, *lora, "run_dir=run", "max_steps=3", "evaluation.tasks=0", "checkpoint.every=2")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def greedy(folder: Path, adapter: Path | None = None) -> str:
    """What transformers says: the most probable token, one after the other, with the cache and without."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + TOKENS and (ids == list(prompt) or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        cached = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)[0].tolist()
    assert cached == ids
    # The server holds back a character whose last bytes have not come yet; a limit on tokens may cut there.
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def server(trained: Path) -> Iterator[Any]:
    """An openai client of a server of the run's initial model, with the trained adapter beside it."""
    import openai

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "funicular.launch.cli", "serve", "model", "--name", "initial"]
    command += ["--lora", "trained=run", "--port", str(port), "--kv-cache-gib", "0.2", "--", "--max-model-len", "256"]
    with (trained / "server.log").open("w") as log:
        running = subprocess.Popen(command, cwd=trained, stdout=log, stderr=log)
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60)
            limit = time.monotonic() + 400
            while True:
                assert running.poll() is None, (trained / "server.log").read_text()[-3000:]
                assert time.monotonic() < limit, "the server did not answer within 400 s"
                try:
                    client.models.list()
                    break
                except openai.APIConnectionError:
                    time.sleep(1)
            yield client
        finally:
            running.terminate()
            running.wait(timeout=60)


def test_the_exported_checkpoint_is_the_runs_own_model(trained: Path) -> None:
    import torch
    from safetensors.torch import load_file

    last = funicular(trained, "export", "run", "--step", "3", "--to", "last")
    assert last.returncode == 0, last.stderr
    (trained / "run" / "model").rename(trained / "run" / "hidden")
    try:
        again = funicular(trained, "export", "run", "--to", "again")
        earlier = funicular(trained, "export", "run", "--step", "2", "--merged", "--to", "earlier")
        adapter = funicular(trained, "export", "run", "--adapter", "--to", "adapter")
    finally:
        (trained / "run" / "hidden").rename(trained / "run" / "model")
    for done in (again, earlier, adapter):
        assert done.returncode == 0, done.stderr
    assert "use_cache is true" in again.stdout
    expected = load_file(trained / "last" / "model.safetensors")
    found = load_file(trained / "again" / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    other = load_file(trained / "earlier" / "model.safetensors")
    assert not all(torch.equal(expected[name], other[name]) for name in expected)
    assert not (trained / "earlier" / "adapter").exists()
    for folder in ("last", "again", "earlier", "run/model"):
        assert json.loads((trained / folder / "config.json").read_text())["use_cache"] is True
    assert json.loads((trained / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_the_server_says_what_the_learners_model_says(trained: Path, server: Any) -> None:
    def answer(name: str) -> str:
        said = server.chat.completions.create(model=name, messages=QUESTION, temperature=0, max_tokens=TOKENS)
        return said.choices[0].message.content.rstrip("\N{REPLACEMENT CHARACTER}")

    assert {model.id for model in server.models.list()} == {"initial", "trained"}
    initial = greedy(trained / "model")
    merged = greedy(trained / "run" / "model")
    assert merged == greedy(trained / "model", trained / "run" / "model" / "adapter")
    assert initial != merged
    assert answer("initial") == initial
    assert answer("trained") == merged


def test_the_plan_of_memory_was_right(trained: Path) -> None:
    figures = json.loads((trained / "run" / "memory.json").read_text())["gib"]
    assert set(figures) == {"learner", "engine"}
    for name, of in figures.items():
        assert of["predicted"] == pytest.approx(of["measured"], rel=0.15), name


def test_an_evaluation_of_a_run_writes_every_completion(trained: Path) -> None:
    words = ["eval", "-c", "tiny.yaml", "--model", "run", "--set", "all", "--tasks", "6", "--k", "1,3"]
    done = funicular(trained, *words, "--json", "figures.json", "--output", "lines.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((trained / "figures.json").read_text())
    assert sum(figures["statuses"].values()) == 18
    assert set(figures["pass_at"]) == {"1", "3"}
    lines = [json.loads(line) for line in (trained / "lines.jsonl").read_text().splitlines()]
    assert len(lines) == 18
    by_task = {line["task_id"]: [] for line in lines}
    for line in lines:
        by_task[line["task_id"]].append(line["reward"])
    assert figures["reward"]["value"] == pytest.approx(
        sum(sum(rewards) / len(rewards) for rewards in by_task.values()) / 6
    )
    assert done.stdout.count("variety") == 1
