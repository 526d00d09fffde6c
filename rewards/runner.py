"""Scores a rollout group: the verifier, then the reward functions, then the verdicts.

Verifier and functions run in a killable process that forks: once for the verifier and the built-in functions
together, once for each function of a user's. Functions that use the network have a second process. The verifier `code`
asks the sandbox instead (`funicular.rewards.code`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funicular.rewards.attribution import Outcome, attribute, attribute_to_all
from funicular.rewards.config import RewardConfig
from funicular.rewards.config_checks import check_rewards
from funicular.rewards.forks import Ending, ForkLimits, wall_s
from funicular.rewards.group_fork import parted, values
from funicular.rewards.reward_process import START_LIMIT_S, Load, Reply, RewardLoadError, RewardProcess
from funicular.rewards.types import Status, Task, Verdict
from funicular.rewards.verdict import verdict
from funicular.rewards.verification import Verification
from funicular.rewards.verifiers import SANDBOXED

if TYPE_CHECKING:
    from funicular.rewards.code import CodeJudge

__all__ = ["FunctionRunner", "RewardLoadError", "scoring_deadline_s"]

_CALLS_ON_GROUP, _CALLS_ALONE = 4, 2
"""At most, of one reward function: one with others, and those of `attribute`."""


def scoring_deadline_s(config: RewardConfig, group_size: int, judge_deadline_s: float = 0.0) -> float:
    """Seconds after which scoring one group is certainly hung: everything failing in the slowest way.

    Args:
        judge_deadline_s: within which the sandbox judges a group, for the verifier `code`.
    """
    alone_s = _CALLS_ALONE * group_size * wall_s(config.time_limit_s)
    total_s = START_LIMIT_S + (judge_deadline_s if config.verifier in SANDBOXED else alone_s)
    for name in config.functions:
        if config.uses_network(name):
            total_s += 2 * config.network_time_limit_s
        else:
            total_s += _CALLS_ON_GROUP * wall_s(group_size * config.time_limit_s) + alone_s
    return total_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    task: Task
    texts: Sequence[str]
    completion_ids: Sequence[list[int]]

    def arguments(
        self, chosen: list[int], verifications: Sequence[Verification] | None, functions: list[str]
    ) -> dict[str, Any]:
        """Of `child.Evaluator.score`, for the chosen completions."""
        found = None
        if verifications is not None:
            found = [{"correct": verifications[i].correct, "details": dict(verifications[i].details)} for i in chosen]
        return {
            "task": self.task,
            "texts": [self.texts[i] for i in chosen],
            "completion_ids": [self.completion_ids[i] for i in chosen],
            "found": found,
            "functions": functions,
        }


class FunctionRunner:
    """Turns groups of completions into verdicts. Owns up to two processes.

    Args:
        folder: the recipe's, to which the paths of user functions are relative.
        judge: asks the sandbox; needed for the verifier `code` only.

    Raises:
        ValueError: section `reward` is wrong; says which key.
    """

    def __init__(self, config: RewardConfig, folder: Path, judge: CodeJudge | None = None) -> None:
        self._config = config
        self._judge = judge
        self._files = {name: str(file) for name, file in check_rewards(config, folder).items()}
        if config.verifier in SANDBOXED and judge is None:
            raise ValueError(f"reward.verifier={config.verifier} runs code: it needs a sandbox, and none was given")
        self._built_in = [
            label
            for label in config.functions
            if not config.uses_network(label) and config.function_of(label) not in self._files
        ]
        """Functions that share a fork."""
        self._offline = RewardProcess(self._load(network=False), network=False)
        self._network = RewardProcess(self._load(network=True), network=True)

    def start(self) -> None:
        """Start the processes and load verifier and functions, unless they run already.

        Raises:
            RewardLoadError: a function could not be imported or does not take its options.
        """
        self._offline.start()
        self._network.start()

    def close(self) -> None:
        """Kill the processes. The next call starts new ones."""
        self._offline.close()
        self._network.close()

    def score(
        self, task: Task, texts_G: Sequence[str], completion_ids_G: Sequence[list[int]]
    ) -> tuple[list[Verdict], dict[str, str]]:
        """Score the completions of one task.

        Args:
            texts_G: decoded completions.
            completion_ids_G: their token ids.

        Returns:
            (G) verdicts, and the last error of each function (`verifier NAME` for the verifier) that raised. A
            sandbox that judges some of the group has not raised.

        Raises:
            RewardLoadError: a process had to be restarted and could not.
        """
        raised: dict[str, str] = {}
        group = _Group(task=task, texts=texts_G, completion_ids=completion_ids_G)
        replies: dict[str, Reply | None] = {}
        if task.verifier in SANDBOXED:
            verifications, error = self._judged(task, texts_G)
        else:
            verifications, error, replies = self._verified(group)
        if error:
            raised[f"verifier {task.verifier}"] = error
        indexes = [i for i, v in enumerate(verifications) if v.status is not Status.INFRA_ERROR]
        not_asked = [name for name in self._built_in if name not in replies]
        if indexes and not_asked:
            reply = self._rewarded(group, indexes, verifications, not_asked)
            replies |= parted(reply, 0, not_asked).functions

        outcomes: dict[str, Outcome] = {}
        for name in self._config.functions:

            def call(chosen: list[int], name: str = name) -> list[Any]:
                reply = replies.pop(name, None)  # what stands there was asked of `indexes`, as the first call is
                return values(reply or self._rewarded(group, chosen, verifications, [name]))

            blame = attribute_to_all if self._config.uses_network(name) else attribute
            outcomes[name] = blame(call, indexes)
            if outcomes[name].errors:
                raised[name] = list(outcomes[name].errors.values())[-1]
        return [verdict(i, v, outcomes, self._config) for i, v in enumerate(verifications)], raised

    def _judged(self, task: Task, texts: Sequence[str]) -> tuple[list[Verification], str]:
        """What the sandbox says of each text, and the error if it could judge none."""
        from funicular.rewards.code import verify_code

        if self._judge is None:
            raise ValueError(f"task {task.task_id}: its verifier {task.verifier} needs a sandbox, and none was given")
        try:
            found = verify_code(task, texts, self._judge, **self._config.verifier_options)
        except Exception as error:  # as for any verifier: an error voids the group, and several in a row stop the run
            message = f"{type(error).__name__}: {error}"
            return [_failed(message)] * len(texts), message
        failed = [v.details.get("detail", "") for v in found if v.status is Status.INFRA_ERROR]
        return found, (failed[-1] or "infra_error") if failed and len(failed) == len(found) else ""

    def _verified(self, group: _Group) -> tuple[list[Verification], str, dict[str, Reply | None]]:
        """What the verifier says of each text, its last error, and what the built-in functions said in the same fork.

        Texts are verified one after the other in one fork. What was answered stays; the text under way when the
        fork ended is to blame. What raises or crashes is tried once more. Functions are asked in the first fork, and
        only if the verifier answered for every text.
        """
        found: dict[int, Verification] = {}
        tried: set[int] = set()
        last_error = ""
        waiting = list(range(len(group.texts)))
        replies: dict[str, Reply | None] = {}
        functions = self._built_in
        while waiting:
            arguments = group.arguments(waiting, None, functions)
            reply = parted(
                self._offline.call(arguments, self._limits(texts=len(waiting), functions=len(functions))),
                len(waiting),
                functions,
            )
            replies |= reply.functions
            functions = []
            failed: dict[int, str] = {}
            for index, answer in zip(waiting, reply.verifier.answers, strict=False):
                if "raised" in answer:
                    failed[index] = answer["raised"]
                else:
                    found[index] = _verification(answer["value"])
            rest = waiting[len(reply.verifier.answers) :]
            if reply.verifier.ending is Ending.DIED:
                failed[rest.pop(0)] = reply.verifier.message
            elif reply.verifier.ending is not Ending.DONE:
                details = {"verifier": reply.verifier.message}
                found[rest.pop(0)] = Verification(correct=False, details=details, status=Status.TIMEOUT)
            for index, message in failed.items():
                if index in tried:
                    found[index], last_error = _failed(message), message
            waiting = rest + [index for index in failed if index not in tried]
            tried |= set(failed)
        return [found[i] for i in range(len(group.texts))], last_error, replies

    def _rewarded(
        self, group: _Group, chosen: list[int], verifications: Sequence[Verification], functions: list[str]
    ) -> Reply:
        """What functions say of the chosen completions: of one process, in one fork."""
        arguments = group.arguments(chosen, verifications, functions)
        if self._config.uses_network(functions[0]):
            limit_s = (self._config.network_time_limit_s,)
            limits = ForkLimits(cpu_s=limit_s, wall_s=limit_s, memory_mib=self._config.memory_mib)
            return self._network.call(arguments, limits)
        return self._offline.call(arguments, self._limits(completions=len(chosen), functions=len(functions)))

    def _limits(self, *, texts: int = 0, completions: int = 0, functions: int = 0) -> ForkLimits:
        """Limits of a fork that verifies `texts` and then asks `functions` about them, or about `completions`."""
        each_s = self._config.time_limit_s
        cpu_s = [each_s] * texts + [(texts or completions) * each_s] * functions
        return ForkLimits(cpu_s=tuple(cpu_s), wall_s=tuple(map(wall_s, cpu_s)), memory_mib=self._config.memory_mib)

    def _load(self, *, network: bool) -> Load:
        """What one of the two processes loads: the verifier and the other functions, or those with network."""
        config = self._config
        in_child = not network and config.verifier not in SANDBOXED
        labels = [label for label in config.functions if config.uses_network(label) == network]
        functions = {label: config.function_of(label) for label in labels}
        return Load(
            verifier=config.verifier if in_child else None,
            verifier_options=dict(config.verifier_options) if in_child else {},
            functions=functions,
            files={name: file for name, file in self._files.items() if name in functions.values()},
            options={label: config.options[label] for label in labels if label in config.options},
        )


def _verification(answer: Mapping[str, Any]) -> Verification:
    status = answer["status"]
    return Verification(
        correct=answer["correct"], details=answer["details"], status=None if status is None else Status(status)
    )


def _failed(message: str) -> Verification:
    return Verification(correct=False, details={"verifier": message}, status=Status.INFRA_ERROR)
