"""What a recipe may ask of completions, against a real engine: how they end, what form they have, how they are seeded.

Whatever is asked, the recorded log-probability is that of the distribution that was sampled. A minute.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from funicular.actors.config import GeneratorConfig, WeightSyncConfig
from funicular.actors.errors import GroupFailed
from funicular.actors.types import GenerationRecord, GenerationRequest, GroupPayload
from funicular.rewards.types import Task
from tests.publish_helpers import publish, token_logprobs
from tests.tiny import make_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

TOLERANCE = 1e-4
LONG = 60


class Engine:
    """A generator with the transformers model that it serves."""

    def __init__(self, generator: Any, model: Any) -> None:
        self.generator = generator
        self.model = model
        self.plain: GeneratorConfig = generator._config

    async def generate(
        self, *, form: Any = None, temperature: float = 1.0, seed: int | None = None, count: int = 2, **options: Any
    ) -> tuple[GenerationRecord, GroupPayload]:
        """A group under the options of a recipe; they are read when a group begins."""
        self.generator._config = replace(self.plain, **options)
        task = Task(task_id="t", prompt="one two three", answer=None, verifier="none", structured_output=form)
        return await self.generator.generate(
            GenerationRequest(group_id="g", task=task, count=count, temperature=temperature, seed=seed)
        )

    async def tokens(self, **options: Any) -> list[int]:
        _, payload = await self.generate(count=1, **options)
        return payload.token_ids.tolist()

    def logprobs(self, payload: GroupPayload, index: int) -> np.ndarray:
        """The model's own log-probabilities of a completion, over the whole distribution."""
        prompt, tokens = payload.prompt_ids.tolist(), payload.token_ids[payload.completion(index)].tolist()
        return token_logprobs(self.model, [*prompt, *tokens], 1.0)[len(prompt) - 1 :]

    def say_what_the_model_says(self, payload: GroupPayload) -> None:
        for i in range(len(payload.texts)):
            theirs = self.logprobs(payload, i)
            mine = payload.generator_logprobs
            assert mine is not None
            np.testing.assert_allclose(mine[payload.completion(i)], theirs, atol=TOLERANCE, rtol=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    import torch
    from transformers import AutoModelForCausalLM

    from funicular.actors.generator import Generator

    folder = tmp_path_factory.mktemp("llama")
    make_tiny_model(folder, architecture="llama", tied=True)
    config = GeneratorConfig(
        max_prompt_tokens=64,
        max_completion_tokens=LONG,
        max_sequences=8,
        kv_cache_gib=0.25,
        engine_options={"enable_prefix_caching": False},
    )
    generator = Generator(
        "generator-0",
        config,
        WeightSyncConfig(deadline_s=120.0),
        model_folder=str(folder),
        chat_template="auto",
        seed=0,
        use_gpu=False,
    )
    await generator.start()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    await generator.install(publish(model, 0), 1)
    yield Engine(generator, model)
    await generator.stop()


async def test_an_engine_option_reaches_the_engine(engine: Engine) -> None:
    assert engine.generator._engine.vllm_config.cache_config.enable_prefix_caching is False


async def test_a_stop_text_ends_a_completion_with_the_token_that_completes_it(engine: Engine) -> None:
    _, whole = await engine.generate(temperature=0.0, count=1)
    decode = engine.generator._prompts.decode
    text = whole.texts[0]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    record, payload = await engine.generate(temperature=0.0, count=1, stop=[stop])
    length = record.lengths_G[0]
    assert payload.token_ids.tolist() == whole.token_ids[:length].tolist()
    assert stop in payload.texts[0]
    assert stop not in decode(payload.token_ids[: length - 1].tolist())
    assert record.truncated_G == (False,)
    engine.say_what_the_model_says(payload)


async def test_a_stop_token_ends_a_completion_and_stays_in_it(engine: Engine) -> None:
    whole = await engine.tokens(temperature=0.0)
    stop = whole[4]
    record, payload = await engine.generate(temperature=0.0, count=1, stop_token_ids=[stop])
    assert payload.token_ids.tolist() == whole[: whole.index(stop) + 1]
    assert record.truncated_G == (False,)


async def test_before_the_least_length_nothing_ends_and_log_probabilities_are_of_the_rest(engine: Engine) -> None:
    import torch

    record, payload = await engine.generate(count=4, min_completion_tokens=LONG)
    assert record.lengths_G == (LONG,) * 4
    assert payload.generator_logprobs is not None
    eos = engine.model.config.eos_token_id
    for i in range(4):
        tokens = [*payload.prompt_ids.tolist(), *payload.token_ids[payload.completion(i)].tolist()]
        with torch.no_grad():
            ends = torch.softmax(engine.model(torch.tensor([tokens])).logits[0].double(), -1)[:, eos].numpy()
        ends = ends[len(payload.prompt_ids) - 1 : -1]
        gained = payload.generator_logprobs[payload.completion(i)] - engine.logprobs(payload, i)
        np.testing.assert_allclose(gained, -np.log1p(-ends), atol=TOLERANCE, rtol=0)
        assert gained.max() > 10 * TOLERANCE


def one_of(*texts: str) -> Callable[[str], bool]:
    return lambda text: text in texts


@pytest.mark.parametrize(
    ("form", "fits"),
    [
        ({"regex": "[0-9]{3}"}, lambda text: re.fullmatch("[0-9]{3}", text) is not None),
        ({"choice": ["yes", "no"]}, one_of("yes", "no")),
        ({"grammar": 'root ::= "left" | "right"'}, one_of("left", "right")),
        (
            {"json_schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}},
            lambda text: isinstance(json.loads(text)["a"], bool),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
async def test_a_form_binds_completions_and_their_log_probabilities_are_of_what_it_left(
    engine: Engine, form: Any, fits: Callable[[str], bool]
) -> None:
    record, payload = await engine.generate(form=form, count=4)
    assert payload.generator_logprobs is not None
    for i, truncated in enumerate(record.truncated_G):
        assert truncated or fits(payload.texts[i])
        mine = payload.generator_logprobs[payload.completion(i)]
        weight = np.exp(engine.logprobs(payload, i) - mine)
        assert (mine <= 0).all()
        assert (weight < 1 + TOLERANCE).all(), "the policy's probability of all that was allowed"
        assert weight.min() < 0.5, "a tiny model gives most of its probability to what a form rules out"


async def test_a_form_that_the_engine_cannot_read_refuses_the_task(engine: Engine) -> None:
    with pytest.raises(GroupFailed) as failed:
        await engine.generate(form={"grammar": "root ::= ("})
    assert (failed.value.reason, failed.value.retry_task) == ("prompt_refused", False)


async def test_seeded_completions_depend_on_the_seed_alone(engine: Engine) -> None:
    alone = await engine.tokens(seed=5)
    _, crowded = await engine.generate(seed=5, count=6)
    assert crowded.token_ids[crowded.completion(0)].tolist() == alone
    assert len({tuple(crowded.token_ids[crowded.completion(i)].tolist()) for i in range(6)}) == 6
    assert await engine.tokens(seed=6) != alone
    assert await engine.tokens() != await engine.tokens()


async def test_a_completion_that_repeats_itself_is_stopped_as_truncated(engine: Engine) -> None:
    """A form leaves greedy decoding nothing but the same letter."""
    form = {"regex": "a{200}"}
    record, payload = await engine.generate(form=form, temperature=0.0, count=1, stop_repetition_count=4)
    tokens = payload.token_ids.tolist()
    assert record.repeated_G == record.truncated_G == (True,)
    assert len(tokens) < LONG
    repeats = [n for n in range(1, 33) if len(tokens) >= 4 * n and tokens[-n:] * 4 == tokens[-4 * n :]]
    assert repeats
    record, _ = await engine.generate(form=form, temperature=0.0, count=1)
    assert (record.repeated_G, record.truncated_G) == ((False,), (True,))


async def test_statistics_are_those_of_what_was_generated(engine: Engine) -> None:
    await engine.generator.serving_stats()
    record, _ = await engine.generate(count=3)
    await asyncio.sleep(0.2)  # the engine tells of its last iteration after it has handed out the tokens
    stats = await engine.generator.serving_stats()
    assert stats.tokens == sum(record.lengths_G)
    assert (stats.first_tokens, stats.gaps > 0, stats.iterations >= max(record.lengths_G)) == (3, True, True)
    assert 0 < stats.cache_used_max < 1
    assert stats.running >= stats.iterations - 1


async def test_the_names_of_engine_options_are_those_of_the_installed_vllm() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    from funicular.launch.engine_options import _OWN_KEYS, _REFUSED, engine_option_names

    names = {field.name for field in fields(AsyncEngineArgs) if not field.name.startswith("_")}
    assert engine_option_names() == names
    assert set(_OWN_KEYS) | set(_REFUSED) <= names
