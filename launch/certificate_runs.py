"""The processes of a certificate, from the command's side: the plain model, then the learner's ranks, cut by cut."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funicular.actors.errors import first_line
from funicular.actors.types import GenerationRecord, GroupPayload, ScoredGroup
from funicular.cluster.calls import call
from funicular.launch import certificate_batch
from funicular.launch.certificate import Row
from funicular.launch.certificate_cuts import Cut, cuts
from funicular.launch.config import Config
from funicular.launch.task_order import TaskIterator
from funicular.launch.verify_options import VerifyOptions
from funicular.rewards.types import Task

if TYPE_CHECKING:
    from funicular.actors.gradient_probe import ProbedRank

_TRIES = 10
"""Tasks looked at for each that is taken: some prompts may be too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What all processes of a certificate read."""

    model: Path
    gradient: Path
    """The float64 gradient."""


class PlainRun:
    """The plain model's process."""

    def __init__(self, config: Config, files: Files) -> None:
        from funicular.actors.plain_policy import plain_policy_actor

        self.norm = 0.0
        """Of the float64 gradient, once it is there."""
        self.seconds = 0.0
        """That it took."""
        self._config = config
        self._file = str(files.gradient)
        self._actor = plain_policy_actor().remote(
            str(files.model),
            chat_template=config.model.chat_template,
            temperature=config.generator.temperature,
            seed=config.seed,
        )

    async def sample(
        self, iterator: TaskIterator, options: VerifyOptions
    ) -> tuple[list[Task], list[tuple[GenerationRecord, GroupPayload]]]:
        """The first tasks of the run whose prompts are short enough, and their completions.

        Raises:
            ValueError: there are not enough of them.
        """
        config = self._config
        candidates = [iterator.next() for _ in range(_TRIES * options.tasks)]
        distinct = list({task.task_id: task for task in candidates}.values())
        prompts = await self._call("render", distinct, what="prompts to be rendered", starts=True)
        limit = config.generator.max_prompt_tokens
        short = [(task, ids) for task, ids in zip(distinct, prompts, strict=True) if len(ids) <= limit]
        if len(short) < options.tasks:
            raise ValueError(
                f"generator.max_prompt_tokens={limit}: {len(short)} of the first {len(distinct)} tasks have prompts "
                f"that are not longer, and {options.tasks} are needed"
            )
        chosen = short[: options.tasks]
        most = min(options.completion_tokens, config.generator.max_completion_tokens)
        limits = certificate_batch.draw_limits(options.tasks, options.completions, most, config.seed)
        say(f"sampling {options.tasks} x {options.completions} completions")
        named = [(f"group-{index}", ids) for index, (_, ids) in enumerate(chosen)]
        return [task for task, _ in chosen], await self._call("sample", named, limits, what="completions")

    async def gradient(self, groups: Sequence[ScoredGroup], payloads: Mapping[str, GroupPayload]) -> Row:
        """Write the float64 gradient; the row of the same in float32.

        Raises:
            ValueError: it is 0.
        """
        from funicular.actors.plain_gradient import OptimizerBatch

        config = self._config
        batch = OptimizerBatch(
            groups=tuple(groups),
            payloads=payloads,
            rewards=config.reward,
            algorithm=config.algorithm,
            temperature=config.generator.temperature,
            max_completion_tokens=config.generator.max_completion_tokens,
        )
        arguments = (batch, config.learner, self._file)
        say("the plain gradient in float64")
        began = time.monotonic()
        self.norm = await self._call("gradient", *arguments, what="the float64 gradient")
        self.seconds = time.monotonic() - began
        if self.norm == 0:
            raise ValueError(
                "the gradient is 0: every advantage is, or every token is masked; nothing can be compared. With "
                "--score, leave it out: an untrained model's rewards are often all equal"
            )
        say("the plain gradient in float32")
        began = time.monotonic()
        errors = await self._call("float32_errors", *arguments, what="the plain float32 gradient")
        return Row(cut="plain model in float32", judged=False, seconds=time.monotonic() - began, errors=errors)

    def close(self) -> None:
        """End the process: its memory is needed."""
        import ray

        ray.kill(self._actor)

    async def _call(self, method: str, *arguments: Any, what: str, starts: bool = False) -> Any:
        learner = self._config.learner
        deadline_s = learner.start_deadline_s if starts else learner.step_deadline_s
        return await call(getattr(self._actor, method).remote(*arguments), deadline_s=deadline_s, what=what)


async def cut_rows(
    config: Config,
    files: Files,
    groups: Sequence[ScoredGroup],
    payloads: Mapping[str, GroupPayload],
    rank_class: type[ProbedRank] | None,
) -> list[Row]:
    """The learner's gradient of the batch, cut by cut, in processes that serve all cuts of the same number of ranks."""
    import ray

    from funicular.actors.gradient_probe import ProbedRank, probe_hosts

    stored = [replace(group, payload=ray.put(payloads[group.group_id])) for group in groups]
    planned = cuts(config.learner)
    rows: list[Row] = []
    hosts: list[Any] = []
    for number, cut in enumerate(planned, start=1):
        say(f"cut {number} of {len(planned)}: {cut.name}")
        if len(hosts) != cut.learner.ranks:
            _kill(hosts)
            hosts = probe_hosts(cut.learner.ranks, rank_class or ProbedRank)
        row = await _row(config, files, stored, cut, hosts)
        if row.errors is None:  # ranks may hang in a collective
            _kill(hosts)
            hosts = []
        rows.append(row)
    _kill(hosts)
    return rows


async def _row(config: Config, files: Files, groups: Sequence[ScoredGroup], cut: Cut, hosts: Sequence[Any]) -> Row:
    from funicular.actors.gradient_probe import ProbeSettings
    from funicular.actors.probed_learners import ProbedLearners

    learners = ProbedLearners(
        hosts,
        cut.learner,
        config.algorithm,
        ProbeSettings(
            temperature=config.generator.temperature,
            model_folder=str(files.model),
            seed=config.seed,
            expected=str(files.gradient),
            small_tiles=cut.small_tiles,
        ),
        max_completion_tokens=config.generator.max_completion_tokens,
        rewards=config.reward,
    )
    began = time.monotonic()
    errors, failure, shared = None, "", None
    try:
        found = await learners.errors(groups)
        shared = learners.shared if cut.of_sharing else None
        if shared is False and learners.can_share:
            raise RuntimeError("the model can share prompts, and no pass did")
        errors = found
    except Exception as error:  # whatever a rank raised: the other cuts tell whether it is this one's alone
        traceback.print_exc()
        failure = f"{type(error).__name__}: {first_line(error)}"
    return Row(
        cut=cut.name,
        judged=cut.judged and not (cut.of_sharing and errors is not None and not learners.can_share),
        seconds=time.monotonic() - began,
        errors=errors,
        failure=failure,
        prompts_shared=shared,
    )


def _kill(hosts: Sequence[Any]) -> None:
    import ray

    for host in hosts:
        ray.kill(host)


def say(sentence: str) -> None:
    """Progress; the certificate alone goes to stdout."""
    print(f"- {sentence}", file=sys.stderr, flush=True)
