"""The process that runs verifiers and reward functions: `python -m funicular.rewards.child PARENT_PID`.

Its code is trusted to be honest, not to terminate. It loads the functions once, then answers one call at a
time until its input ends; whoever started it kills it when a call takes too long.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from funicular.rewards import verifiers
from funicular.rewards.channel import HEADER
from funicular.rewards.functions import FUNCTIONS, RewardFunction, arguments_for, check_options
from funicular.rewards.messages import shaped
from funicular.rewards.types import Task

_PR_SET_PDEATHSIG = 1
_MAX_ERROR_CHARACTERS = 2000

Reply = dict[str, Any]


class Evaluator:
    """The loaded functions, and what can be asked of them. Plain; tested without a process."""

    def __init__(self) -> None:
        self._functions: dict[str, RewardFunction] = {}
        self._options: dict[str, dict[str, Any]] = {}

    def load(self, verifier: str, files: dict[str, str], names: list[str], options: dict[str, Any]) -> Reply:
        """Import everything that calls will need. `files`: the file of each user function, by name."""
        verifiers.prepare(verifier)
        for name in names:
            function = FUNCTIONS[name] if name not in files else _from_file(name, Path(files[name]))
            check_options(name, function, options.get(name, {}))
            self._functions[name] = function
        self._options = options
        return {"loaded": True}

    def verify(self, task: Task, texts: list[str]) -> Reply:
        """(n) verifications of the texts."""
        found = [verifiers.VERIFIERS[task.verifier](task, text) for text in texts]
        return {"values": [{"correct": v.correct, "details": dict(v.details)} for v in found]}

    def reward(
        self, name: str, task: Task, texts: list[str], completion_ids: list[list[int]], correct: list[bool]
    ) -> Reply:
        """(n) numbers, or None where the function does not apply."""
        prompts, completions = shaped(task, texts)
        count = len(texts)
        available = {key: [value] * count for key, value in task.columns.items()}
        available |= {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "correct": correct,
            "answer": [task.answer] * count,
            "task_id": [task.task_id] * count,
            **self._options.get(name, {}),
        }
        function = self._functions[name]
        return {"values": _numbers(name, function(**arguments_for(function, available)), count)}


def main() -> None:
    _die_with(int(sys.argv[1]))
    requests, replies = _private_channels()
    evaluator = Evaluator()
    while header := requests.read(HEADER.size):
        operation, arguments = pickle.loads(requests.read(HEADER.unpack(header)[0]))
        try:
            reply = getattr(evaluator, operation)(**arguments)
        except BaseException as error:  # sys.exit() in a reward function must not look like a crash
            reply = {"raised": _describe(error)}
        message = json.dumps(reply).encode()
        replies.write(HEADER.pack(len(message)) + message)
        replies.flush()


def _die_with(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def _private_channels() -> tuple[BinaryIO, BinaryIO]:
    """Input and output of the protocol on descriptors of their own: what functions print goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _from_file(name: str, file: Path) -> RewardFunction:
    attribute = name.rpartition(":")[2]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # so that it imports its neighbours, as a script would
    spec = importlib.util.spec_from_file_location(f"user_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{file} has no function {attribute}")
    return function


def _numbers(name: str, values: Any, count: int) -> list[float | None]:
    """Check what a reward function returned; a wrong number is an error, never a zero."""
    listed = list(values)
    if len(listed) != count:
        raise ValueError(f"{name} returned {len(listed)} values for {count} completions")
    numbers: list[float | None] = []
    for value in listed:
        if value is not None and (isinstance(value, str | bytes) or not hasattr(value, "__float__")):
            raise TypeError(f"{name} returned {value!r:.80}, expected a number or None")
        number = None if value is None else float(value)
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{name} returned {number}, expected a finite number or None")
        numbers.append(number)
    return numbers


def _describe(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS] + where


if __name__ == "__main__":
    main()
