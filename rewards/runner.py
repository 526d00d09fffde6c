"""Scores a rollout group: verifier and reward functions in a killable process, and the rules for what goes
wrong.

Values are only ever taken from calls on whole groups, since a function may compare the completions of a
group. Single calls find out which completion is to blame; the rest of the group is then evaluated together
again.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from funicular.rewards.channel import Child, ChildDiedError, ChildTimeoutError
from funicular.rewards.config import RewardConfig
from funicular.rewards.functions import check_rewards
from funicular.rewards.types import Status, Task, Verdict

START_LIMIT_S = 120.0
"""Seconds for importing the verifier and the user's files."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_CALLS_AT_MOST = 5
"""Whole, whole again, each alone twice, the rest together: in units of the group's time limit."""


class RewardLoadError(ValueError):
    """A reward function or verifier could not be imported; the message is the child's."""


class _RaisedError(RuntimeError):
    """The function raised, in the child."""


@dataclass(slots=True)
class _Outcome:
    """What one callable gave for a group, by index; an index stands in exactly one of the three."""

    values: dict[int, Any] = field(default_factory=dict)
    timeouts: dict[int, str] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


def scoring_deadline_s(config: RewardConfig, group_size: int) -> float:
    """Seconds after which scoring one group is certainly hung: every callable failing in the slowest way."""
    callables = 1 + len(config.functions)
    return START_LIMIT_S + callables * _CALLS_AT_MOST * group_size * config.time_limit_s


class FunctionRunner:
    """Owns one child process and turns groups of completions into verdicts.

    Args:
        folder: the recipe's, to which the paths of user functions are relative.

    Raises:
        ValueError: section `reward` is wrong; says which key.
    """

    def __init__(self, config: RewardConfig, folder: Path) -> None:
        self._config = config
        self._files = check_rewards(config, folder)
        self._child: Child | None = None

    def start(self) -> None:
        """Start the child and load the functions, unless it runs already.

        Raises:
            RewardLoadError: a function could not be imported or does not take its options.
        """
        if self._child is not None and self._child.alive:
            return
        self.close()
        # -P: the working directory must not shadow modules. The path is ours, wherever Ray unpacked us.
        command = [sys.executable, "-P", "-m", "funicular.rewards.child", str(os.getpid())]
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        self._child = Child(command, environment)
        load = {
            "verifier": self._config.verifier,
            "files": {name: str(file) for name, file in self._files.items()},
            "names": list(self._config.functions),
            "options": dict(self._config.options),
        }
        try:
            self._exchange(self._child, "load", load, START_LIMIT_S)
        except (_RaisedError, ChildDiedError, ChildTimeoutError) as error:
            self.close()
            raise RewardLoadError(f"reward: loading {', '.join(load['names'])} failed: {error}") from None

    def close(self) -> None:
        """Kill the child. The next call starts a new one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def score(
        self, task: Task, texts_G: Sequence[str], completion_ids_G: Sequence[list[int]]
    ) -> tuple[list[Verdict], dict[str, str]]:
        """Score the completions of one task.

        Args:
            texts_G: decoded completions.
            completion_ids_G: their token ids.

        Returns:
            (G) verdicts, and the last error of each function (`verifier NAME` for the verifier) that raised.

        Raises:
            RewardLoadError: the child had to be restarted and could not.
        """
        indexes = list(range(len(texts_G)))
        limit = self._config.time_limit_s
        raised: dict[str, str] = {}

        def verify(chosen: list[int]) -> list[Any]:
            arguments = {"task": task, "texts": [texts_G[i] for i in chosen]}
            return self._call("verify", arguments, limit * len(chosen))

        verifications = _attribute(verify, indexes)
        if verifications.errors:
            raised[f"verifier {task.verifier}"] = list(verifications.errors.values())[-1]
        verified = [i for i in indexes if i not in verifications.errors]
        correct = {i: i in verifications.values and verifications.values[i]["correct"] for i in verified}

        outcomes: dict[str, _Outcome] = {}
        for name in self._config.functions:

            def reward(chosen: list[int], name: str = name) -> list[Any]:
                arguments = {
                    "name": name,
                    "task": task,
                    "texts": [texts_G[i] for i in chosen],
                    "completion_ids": [completion_ids_G[i] for i in chosen],
                    "correct": [correct[i] for i in chosen],
                }
                return self._call("reward", arguments, limit * len(chosen))

            outcomes[name] = _attribute(reward, verified)
            if outcomes[name].errors:
                raised[name] = list(outcomes[name].errors.values())[-1]
        verdicts = [_verdict(i, verifications, outcomes, self._config.functions) for i in indexes]
        return verdicts, raised

    def _call(self, operation: str, arguments: dict[str, Any], limit_s: float) -> list[Any]:
        self.start()
        assert self._child is not None
        return self._exchange(self._child, operation, arguments, limit_s)["values"]

    @staticmethod
    def _exchange(child: Child, operation: str, arguments: dict[str, Any], limit_s: float) -> dict[str, Any]:
        reply = json.loads(child.exchange(pickle.dumps((operation, arguments)), limit_s))
        if "raised" in reply:
            raise _RaisedError(reply["raised"])
        return reply


def _attribute(call: Callable[[list[int]], list[Any]], indexes: list[int]) -> _Outcome:
    """Evaluate a group; where that fails, find out for which completions, and evaluate the others again.

    An exception or a crash is retried once. What times out alone is the completion's own doing; what raises
    alone is the function's error. A group that fails only when it is together is the function's error for all
    of it.
    """
    outcome = _Outcome()
    if not indexes:
        return outcome
    tries_alone = 2
    try:
        outcome.values = dict(zip(indexes, call(indexes), strict=True))
        return outcome
    except ChildTimeoutError:
        pass
    except (_RaisedError, ChildDiedError):
        tries_alone = 1  # the call below is the retry
        try:
            outcome.values = dict(zip(indexes, call(indexes), strict=True))
            return outcome
        except (ChildTimeoutError, _RaisedError, ChildDiedError):
            pass
    for index in indexes:
        try:
            _alone(call, index, tries_alone)
        except ChildTimeoutError as error:
            outcome.timeouts[index] = str(error)
        except (_RaisedError, ChildDiedError) as error:
            outcome.errors[index] = str(error)
    rest = [i for i in indexes if i not in outcome.timeouts and i not in outcome.errors]
    try:
        outcome.values = dict(zip(rest, call(rest) if rest else [], strict=True))
    except (ChildTimeoutError, _RaisedError, ChildDiedError) as error:
        outcome.errors |= dict.fromkeys(rest, f"{error} (on these completions together, on none of them alone)")
    return outcome


def _alone(call: Callable[[list[int]], list[Any]], index: int, tries: int) -> None:
    for remaining in reversed(range(tries)):
        try:
            call([index])
            return
        except (_RaisedError, ChildDiedError):
            if not remaining:
                raise


def _verdict(
    index: int, verifications: _Outcome, outcomes: Mapping[str, _Outcome], weights: Mapping[str, float]
) -> Verdict:
    """Put together what the verifier and each function said of one completion."""
    verification = verifications.values.get(index, {"correct": False, "details": {}})
    details: dict[str, str] = dict(verification["details"])
    for name, outcome in {"verifier": verifications, **outcomes}.items():
        for problem in (outcome.timeouts, outcome.errors):
            if index in problem:
                details[name] = problem[index]

    failed = index in verifications.errors or any(index in o.errors for o in outcomes.values())
    timed_out = index in verifications.timeouts or any(index in o.timeouts for o in outcomes.values())
    passed = Status.PASSED if verification["correct"] else Status.FAILED
    status = Status.INFRA_ERROR if failed else Status.TIMEOUT if timed_out else passed

    breakdown: dict[str, float | None] = {}
    missing = failed
    for name, outcome in outcomes.items():
        breakdown[name] = 0.0 if index in outcome.timeouts else outcome.values.get(index)
        applies = any(value is not None for value in outcome.values.values())
        if applies and not failed and breakdown[name] is None:
            missing = True
            details[name] = "returned None for this completion, but not for its whole group"
    numbers = [weights[name] * value for name, value in breakdown.items() if value is not None]
    return Verdict(
        reward=sum(numbers) if numbers and not missing else None,
        breakdown=breakdown,
        status=status,
        details=details,
    )
