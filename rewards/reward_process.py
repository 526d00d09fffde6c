"""The killable process of reward code, seen from its owner: what it loads, what it may see, how it is asked."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from funicular.rewards.channel import Child, ChildDiedError, ChildTimeoutError
from funicular.rewards.forks import Ending, ForkLimits

START_LIMIT_S = 120.0
"""Seconds for importing the verifier and the user's files."""
_SLACK_S = 15.0
"""Beyond a fork's own limits, until the process that watches it has ended it."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""1 unless the user set them: a fork has none of the threads that a library started when it was imported."""
_FOR_NETWORK = tuple(
    name
    for lower in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir")
    for name in (lower, lower.upper())
)


class RewardLoadError(ValueError):
    """A reward function or verifier could not be imported; the message is the child's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a process imports: the arguments of `child.Evaluator.load`."""

    verifier: str | None
    verifier_options: dict[str, Any]
    functions: dict[str, str]
    """The function, by its name in reward.functions."""
    files: dict[str, str]
    """The file of each user function."""
    options: dict[str, Any]

    @property
    def empty(self) -> bool:
        """Whether there is nothing to load."""
        return self.verifier is None and not self.functions


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a call gave. Of a call that did not end well, the answers up to there."""

    answers: Sequence[Mapping[str, Any]]
    """Each holds `value` or `raised`."""
    ending: Ending
    message: str


class RewardProcess:
    """Starts the process when it is needed, and again when it died.

    Args:
        network: it has the network, and the environment variables that an option `api_key_env` names.
    """

    def __init__(self, load: Load, *, network: bool) -> None:
        self._load = load
        self._network = network
        self._child: Child | None = None

    def start(self) -> None:
        """Start the process and load the functions, unless it runs already.

        Raises:
            RewardLoadError: a function could not be imported or does not take its options.
        """
        if self._load.empty or (self._child is not None and self._child.alive):
            return
        self.close()
        environment = dict(self._environment())
        # -P: the working directory must not shadow modules. The path is ours, wherever Ray unpacked us.
        command = [sys.executable, "-P", "-m", "funicular.rewards.child", str(os.getpid())]
        self._child = Child([*command, "network" if self._network else "offline"], environment)
        try:
            loaded = json.loads(self._child.exchange(pickle.dumps(asdict(self._load)), START_LIMIT_S))
        except (ChildDiedError, ChildTimeoutError) as error:
            loaded = {"raised": str(error)}
        if "raised" in loaded:
            self.close()
            raise RewardLoadError(f"reward: loading {self._names()} failed: {loaded['raised']}")

    def call(self, arguments: Mapping[str, Any], limits: ForkLimits) -> Reply:
        """Have `child.Evaluator.score` called in a fork.

        Raises:
            RewardLoadError: the process had to be restarted and could not.
        """
        self.start()
        assert self._child is not None
        request = pickle.dumps((dict(arguments), limits))
        try:
            reply = json.loads(self._child.exchange(request, sum(limits.wall_s) + _SLACK_S))
        except (ChildDiedError, ChildTimeoutError) as error:  # not the fork, but the process that watches it
            return Reply(answers=(), ending=Ending.DIED, message=str(error))
        return Reply(answers=reply["answers"], ending=Ending(reply["ending"]), message=reply["message"])

    def close(self) -> None:
        """Kill the process. The next call starts a new one."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _names(self) -> str:
        return ", ".join([*([self._load.verifier] if self._load.verifier else []), *self._load.functions])

    def _environment(self) -> Iterator[tuple[str, str]]:
        yield "PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry)
        yield from ((name, os.environ.get(name, "1")) for name in _ONE_THREAD)
        passed_on = (*_PASSED_ON, *(_FOR_NETWORK if self._network else ()))
        yield from ((name, os.environ[name]) for name in passed_on if name in os.environ)
        for label in self._load.functions if self._network else ():
            name = self._load.options.get(label, {}).get("api_key_env")
            if name is None:
                continue
            if name not in os.environ:
                key = f"reward.options.{label}.api_key_env={name}"
                raise RewardLoadError(f"{key}: the scorer's environment has no such variable; set it on every node")
            yield name, os.environ[name]
