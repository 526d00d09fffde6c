"""Given completions in the place of sampled ones: texts of the data, encoded once, for what is learnt without sampling.

An encoder is a small actor beside the generators, so that payloads go the same way: returned to the loop, which owns
the references and does not read them. It draws nothing, so a call may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from funicular.actors.config import GeneratorConfig
from funicular.actors.engine_members import EngineMembers
from funicular.actors.errors import GroupFailed, first_line
from funicular.actors.images import image_reader, read_prompt
from funicular.actors.prompts import Prompts, load_tokenizer
from funicular.actors.types import GenerationRecord, GenerationRequest, GroupPayload
from funicular.cluster.calls import call
from funicular.cluster.supervise import RestartBudget

TRIES = 2


class CompletionEncoder:
    """Encodes a task's prompt as a generator does, and its completion after it, with the end-of-sequence token.

    Args:
        name: in records, and in the ledger.
        generator: how long prompts and completions may be.
        model_folder: whose tokenizer it is.
        chat_template: `auto`, `plain` or a Jinja file.
    """

    def __init__(self, name: str, generator: GeneratorConfig, *, model_folder: str, chat_template: str) -> None:
        self._name = name
        self._generator = generator
        self._model_folder = model_folder
        self._chat_template = chat_template
        self._tokenizer: Any = None

    def start(self) -> None:
        """Load the tokenizer.

        Raises:
            ValueError: it has no end-of-sequence token.
        """
        self._tokenizer = load_tokenizer(self._model_folder)
        self._prompts = Prompts(self._tokenizer, self._chat_template)
        self._images = image_reader(self._model_folder)
        if self._tokenizer.eos_token_id is None:
            raise ValueError(f"data.completion_column: the tokenizer of {self._model_folder} has no end token")

    def health(self) -> str:
        """The name."""
        return self._name

    def encode(self, request: GenerationRequest) -> tuple[GenerationRecord, GroupPayload]:
        """The task's completion, `request.count` times (once, in training).

        One that is longer than `max_completion_tokens`, end token included, is cut there and counts as truncated.

        Raises:
            GroupFailed: `prompt_refused` or `prompt_too_long`.
            ValueError: the task has no completion.
        """
        task = request.task
        if task.completion is None:
            raise ValueError(f"task {task.task_id} has no completion")
        began = time.monotonic()
        try:
            prompt = read_prompt(self._images, task, self._prompts.render(task))
        except ValueError as error:
            raise GroupFailed("prompt_refused", str(error), retry_task=False) from error
        limit = self._generator.max_prompt_tokens
        if len(prompt.token_ids) > limit:
            detail = f"{len(prompt.token_ids)} tokens, generator.max_prompt_tokens={limit}"
            raise GroupFailed("prompt_too_long", detail, retry_task=False)
        whole = self._tokenizer(task.completion, add_special_tokens=False)["input_ids"]
        whole = [*whole, self._tokenizer.eos_token_id]
        ids = whole[: self._generator.max_completion_tokens]
        count = request.count
        payload = GroupPayload(
            group_id=request.group_id,
            prompt_ids=np.array(prompt.token_ids, dtype=np.int32),
            token_ids=np.tile(np.array(ids, dtype=np.int32), count),
            offsets=np.arange(count + 1, dtype=np.int64) * len(ids),
            generator_logprobs=None,
            token_versions=None,
            texts=(self._prompts.decode(ids),) * count,
            images=prompt.images,
        )
        record = GenerationRecord(
            group_id=request.group_id,
            generator=self._name,
            prompt_tokens=len(prompt.token_ids),
            lengths_G=(len(ids),) * count,
            truncated_G=(len(ids) < len(whole),) * count,
            finite_G=(True,) * count,
            oldest_version=None,
            newest_version=None,
            seconds=time.monotonic() - began,
        )
        return record, payload


def encoder_actor() -> Any:
    """The Ray actor class around `CompletionEncoder`; the caller gives name and resources with `.options`."""
    return ray.remote(max_restarts=0, max_task_retries=0)(_EncoderActor)


class _EncoderActor(CompletionEncoder):
    @ray.method(num_returns=2)
    def encode(self, request: GenerationRequest) -> tuple[GenerationRecord, GroupPayload]:
        return super().encode(request)


class GivenCompletions(EngineMembers):
    """Encoders as one service, which the loop asks as it asks generators.

    Args:
        make_actor: starts the Ray actor for a name.
        budget: restarts that the run survives.
    """

    def __init__(
        self,
        make_actor: Callable[[str], Any],
        *,
        start_deadline_s: float,
        budget: RestartBudget,
        kill_actor: Callable[[Any], None] = ray.kill,
    ) -> None:
        super().__init__(
            "encoder", make_actor, count=1, start_deadline_s=start_deadline_s, budget=budget, kill_actor=kill_actor
        )

    async def generate(self, request: GenerationRequest) -> tuple[GenerationRecord, Any]:
        """The record of a task's given completion, and the reference to its payload, which the caller owns.

        Raises:
            GroupFailed: it cannot be encoded, or encoders died over it (`encoder_died`).
            RunStopped: no encoder can be brought back.
        """
        failure = GroupFailed("encoder_died")
        for _ in range(TRIES):
            member = await self._least_loaded()
            actor, what = member.actor, f"{member.name}: {request.group_id}"
            self._work(member, +1)
            try:
                record_ref, payload_ref = actor.encode.remote(request)
                return await call(record_ref, deadline_s=None, what=what), payload_ref  # its health is watched
            except RayActorError as error:
                self._distrust(member, actor, first_line(error))
                failure = GroupFailed("encoder_died", f"{what}: {first_line(error)}")
            finally:
                self._work(member, -1)
        raise failure

    async def abort_all(self, reason: str) -> None:
        """Nothing runs long enough to be aborted."""

    async def metrics(self) -> dict[str, float]:
        """None: what encodes is never what a run waits for."""
        return {}
