"""Given completions: encoded as a generator's would stand in a payload, with nothing invented."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.exceptions import RayActorError

from funicular.actors.collate import collate
from funicular.actors.config import AlgorithmConfig, GeneratorConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.given_completions import CompletionEncoder, GivenCompletions
from funicular.actors.rank_distillation import RankDistillation
from funicular.actors.step_plan import plan_step
from funicular.actors.types import GenerationRequest, ScoredGroup
from funicular.cluster.supervise import RestartBudget
from funicular.rewards.types import Status, Task, Verdict
from tests.fakes import FakeMethod
from tests.tiny import make_tiny_model

TEXT = "The answer is forty-two."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


def encoder(folder: str, **limits: int) -> CompletionEncoder:
    made = CompletionEncoder("encoder-0", GeneratorConfig(**limits), model_folder=folder, chat_template="auto")
    made.start()
    return made


def request(completion: str | None = TEXT, prompt: str = "What is six times seven?") -> GenerationRequest:
    task = Task(task_id="t", prompt=prompt, answer=None, completion=completion, verifier="none")
    return GenerationRequest(group_id="g", task=task, count=1, temperature=1.0)


def test_the_text_is_encoded_once_and_ends_with_the_end_token(folder: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    record, payload = encoder(folder).encode(request())
    assert payload.prompt_ids.tolist() == tokenizer("What is six times seven?")["input_ids"]
    assert payload.token_ids.tolist() == [*tokenizer(TEXT)["input_ids"], tokenizer.eos_token_id]
    assert payload.texts == (TEXT,)
    assert (payload.generator_logprobs, payload.token_versions) == (None, None)
    assert record.lengths_G == (len(payload.token_ids),)
    assert record.truncated_G == (False,)
    assert (record.oldest_version, record.newest_version) == (None, None)


def test_a_longer_one_is_cut_and_says_so(folder: str) -> None:
    whole, _ = encoder(folder).encode(request())
    record, payload = encoder(folder, max_completion_tokens=4).encode(request())
    assert (len(payload.token_ids), record.truncated_G) == (4, (True,))
    exact, _ = encoder(folder, max_completion_tokens=whole.lengths_G[0]).encode(request())
    assert exact.truncated_G == (False,)


def test_what_cannot_be_encoded_is_not_tried_again(folder: str) -> None:
    with pytest.raises(GroupFailed, match="prompt_too_long") as caught:
        encoder(folder, max_prompt_tokens=2).encode(request())
    assert not caught.value.retry_task
    with pytest.raises(ValueError, match="no completion"):
        encoder(folder).encode(request(None))


def test_a_row_of_it_has_no_generator_and_its_loss_is_minus_its_log_probability(folder: str) -> None:
    record, payload = encoder(folder).encode(request())
    verdict = Verdict(reward=0.0, breakdown={}, status=Status.FAILED)
    group = ScoredGroup(
        group_id="g",
        slot=0,
        task=request().task,
        generation=record,
        verdicts_G=(verdict,),
        payload=None,
        scoring_seconds=0.0,
    )
    config = DistillationConfig(loss="hard", coef=2.0)
    step = plan_step([group], AlgorithmConfig(group_size=1), 1, 64, 64, distillation=config)
    batch = collate(step.ranks[0].optimizer_batches[0][0], {"g": payload}, torch.device("cpu"))
    assert batch.generator_logprobs is None
    logprobs = torch.linspace(-3, -1, record.lengths_G[0], requires_grad=True)
    distillation = RankDistillation(config, None)
    assert not distillation.needs_policy_term
    term = distillation.compared(logprobs, [])
    assert term is not None
    assert term.kl is None
    (term.losses * batch.token_weights).sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.full_like(logprobs, -2.0 / record.lengths_G[0]))


class FakeEncoding:
    """`encode` with two results; the first actor of all dies over it."""

    def __init__(self, actor: FakeEncoderActor) -> None:
        self._actor = actor

    def remote(self, asked: GenerationRequest) -> tuple[Any, str]:
        async def answer() -> str:
            await asyncio.sleep(0.001)
            if self._actor.number < self._actor.deaths:
                raise RayActorError
            return f"record of {asked.group_id}"

        return asyncio.ensure_future(answer()), "payload"


class FakeEncoderActor:
    """Answers, unless it is one of the first that were made."""

    def __init__(self, number: int, deaths: int) -> None:
        self.number = number
        self.deaths = deaths
        self.encode = FakeEncoding(self)
        self.start = FakeMethod(self.do_start)
        self.health = FakeMethod(self.do_start)

    async def do_start(self) -> None:
        return None


@pytest.mark.parametrize(("deaths", "fails"), [(0, False), (1, False), (2, True)])
async def test_a_dead_encoder_is_rebuilt_and_asked_again_once(deaths: int, fails: bool) -> None:
    made: list[FakeEncoderActor] = []

    def make(name: str) -> FakeEncoderActor:
        made.append(FakeEncoderActor(len(made), deaths))
        return made[-1]

    given = GivenCompletions(make, start_deadline_s=1.0, budget=RestartBudget(3), kill_actor=lambda actor: None)
    await given.start()
    if fails:
        with pytest.raises(GroupFailed, match="encoder_died"):
            await given.generate(request())
    else:
        assert await given.generate(request()) == ("record of g", "payload")
    await asyncio.sleep(0.02)
    assert len(made) == deaths + 1


def test_a_recipes_column_becomes_the_tasks_completion(tmp_path: Path) -> None:
    from funicular.launch.config import DataConfig
    from funicular.launch.datasets import DataError
    from funicular.launch.tasks import load_tasks

    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "one?", "answer": "1", "said": "It is 1."}\n{"prompt": "two?", "answer": "2"}\n')
    config = DataConfig(path=str(file), completion_column="said", held_out_fraction=0.0)
    with pytest.raises(DataError, match=r"data.completion_column=said: 1 of 2 training tasks .* row 2"):
        load_tasks(config, "exact_number", 0)
    file.write_text('{"prompt": "one?", "answer": "1", "said": "It is 1."}\n')
    (task,) = load_tasks(config, "exact_number", 0).train
    assert (task.completion, dict(task.columns)) == ("It is 1.", {})
    file.write_text('{"prompt": "one?", "answer": "1", "said": 3}\n')
    with pytest.raises(DataError, match=r"data.completion_column=said: .* holds 3; expected text"):
        load_tasks(config, "exact_number", 0)
