"""The process that runs verifiers and reward functions: `python -m funicular.rewards.child PARENT_PID offline|network`.

Their code is trusted to be honest, not to terminate. This process loads and warms it once, then forks for each
call (`funicular.rewards.forks`), until its input ends. For a user's file that means:

- What a function leaves in globals is gone after the call; what the file does when it is imported is there in every
  call: load models and tables there. Processes that it starts there live on; those that a call starts are killed.
- A thread that it starts when it is imported does not run in calls. OpenMP, BLAS and MKL get one thread unless the
  environment says otherwise: their pools do not survive a fork.
- `random` is seeded anew in each call; numpy's global generator begins in the same state every time.
- `offline`: from before the first import on there is no network, only Unix sockets. Functions that reward.network
  names, and llm_judge, run in another such process, started with `network`.
- An exception in the list that a function returns voids that one completion; None means "does not apply".
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from funicular.rewards import functions as library
from funicular.rewards import verifiers
from funicular.rewards.channel import HEADER
from funicular.rewards.config_checks import option_mistakes
from funicular.rewards.forks import Send, become_subreaper, die_with, run_forked
from funicular.rewards.messages import shaped
from funicular.rewards.network import HINT, deny_network, was_denied
from funicular.rewards.processes import descendants
from funicular.rewards.types import Task
from funicular.rewards.verification import Verifier

OFFLINE, NETWORK = "offline", "network"
_MAX_ERROR_CHARACTERS = 2000

Answer = dict[str, Any]


class Evaluator:
    """The loaded functions, and what can be asked of them. Plain; tested without a process."""

    def __init__(self) -> None:
        self._verifier_options: dict[str, Any] = {}
        self._functions: dict[str, library.RewardFunction] = {}
        self._options: dict[str, dict[str, Any]] = {}

    def load(
        self,
        *,
        verifier: str | None,
        verifier_options: dict[str, Any],
        functions: dict[str, str],
        files: dict[str, str],
        options: dict[str, dict[str, Any]],
    ) -> None:
        """Import everything that calls will need.

        Args:
            functions: the function's name, by its name in reward.functions.
            files: the file of each user function, by the function's name.

        Raises:
            Anything that a user's file raises; ValueError for options that a function does not take.
        """
        if verifier is not None:
            verifiers.prepare(verifier)
        self._verifier_options, self._options = verifier_options, options
        modules: dict[str, ModuleType] = {}
        for label, name in functions.items():
            if name in files:
                file = files[name]
                modules[file] = modules.get(file) or _import(Path(file))
                function = _attribute_of(modules[file], name)
            else:
                library.prepare(name)
                function = library.FUNCTIONS[name]
            built_in = name not in files
            unknown = option_mistakes(f"reward.options.{label}", function, options.get(label, {}), built_in=built_in)
            for mistake in unknown:
                raise ValueError(str(mistake))
            self._functions[label] = function

    def score(
        self,
        task: Task,
        texts: list[str],
        completion_ids: list[list[int]],
        found: list[dict[str, Any]] | None,
        functions: list[str],
    ) -> Iterator[Answer]:
        """What the verifier says of each text, then what each function says of all of them.

        Args:
            found: `correct` and `details` of each text; None: ask the verifier.

        Yields:
            For each text that the verifier was asked for: `value`, or what it `raised`.
            For each function: `value`, (n) numbers, None where the function does not apply and {"unscored": why} where
            it put an exception; or what it `raised`; or nothing: not asked, because the verifier raised.
        """
        verified = found
        if verified is None:
            verified = []
            verifier = verifiers.VERIFIERS[task.verifier]
            for text in texts:
                answer = _answer(partial(_verified, verifier, task, text, self._verifier_options))
                verified += [answer["value"]] if "value" in answer else []
                yield answer
        for name in functions:
            if len(verified) == len(texts):
                yield _answer(partial(self._rewarded, name, task, texts, completion_ids, verified))
            else:
                yield {}

    def _rewarded(
        self,
        name: str,
        task: Task,
        texts: list[str],
        completion_ids: list[list[int]],
        found: list[dict[str, Any]],
    ) -> list[Any]:
        prompts, completions = shaped(task, texts)
        count = len(texts)
        available = {key: [value] * count for key, value in task.columns.items()}
        available |= {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "correct": [one["correct"] for one in found],
            "details": [dict(one["details"]) for one in found],
            "answer": [task.answer] * count,
            "task_id": [task.task_id] * count,
            **self._options.get(name, {}),
        }
        function = self._functions[name]
        return _numbers(name, function(**library.arguments_for(function, available)), count)


def main() -> None:
    parent, access = int(sys.argv[1]), sys.argv[2]
    die_with(parent)
    become_subreaper()
    if access == OFFLINE:
        deny_network()
    requests, replies = _private_channels()
    evaluator = Evaluator()
    _reply(replies, _answer(lambda: evaluator.load(**_request(requests))))
    gc.collect()
    gc.freeze()  # or the first collection in a fork would copy every page that it marks
    started_by_files = descendants(os.getpid())
    while (request := _request(requests)) is not None:
        arguments, limits = request
        report = run_forked(
            _work(evaluator, arguments),
            limits,
            private=(requests.fileno(), replies.fileno()),
            spared=started_by_files,
        )
        answers = [json.loads(frame) for frame in report.frames]
        _reply(replies, {"answers": answers, "ending": report.ending, "message": report.message})


def _work(evaluator: Evaluator, arguments: dict[str, Any]) -> Callable[[Send], None]:
    def work(send: Send) -> None:
        for answer in evaluator.score(**arguments):
            send(json.dumps(answer).encode())

    return work


def _request(requests: BinaryIO) -> Any:
    """The next request; None at the end of the input."""
    header = requests.read(HEADER.size)
    return pickle.loads(requests.read(HEADER.unpack(header)[0])) if header else None


def _reply(replies: BinaryIO, reply: Answer) -> None:
    message = json.dumps(reply).encode()
    replies.write(HEADER.pack(len(message)) + message)
    replies.flush()


def _private_channels() -> tuple[BinaryIO, BinaryIO]:
    """Input and output of the protocol on descriptors of their own: what functions print goes to stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _import(file: Path) -> ModuleType:
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # so that it imports its neighbours, as a script would
    spec = importlib.util.spec_from_file_location(f"user_reward_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _attribute_of(module: ModuleType, name: str) -> library.RewardFunction:
    attribute = name.rpartition(":")[2]
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"{module.__file__} has no function {attribute}")
    return function


def _verified(verifier: Verifier, task: Task, text: str, options: dict[str, Any]) -> Answer:
    verification = verifier(task, text, **options)
    status = verification.status
    return {
        "correct": verification.correct,
        "details": dict(verification.details),
        "status": None if status is None else str(status),
    }


def _numbers(name: str, values: Any, count: int) -> list[Any]:
    """Check what a reward function returned; a wrong number is an error, never a zero."""
    listed = list(values)
    if len(listed) != count:
        raise ValueError(f"{name} returned {len(listed)} values for {count} completions")
    return [_number(name, value) for value in listed]


def _number(name: str, value: Any) -> float | dict[str, str] | None:
    if isinstance(value, Exception):
        return {"unscored": _describe(value)}
    if value is not None and (isinstance(value, str | bytes) or not hasattr(value, "__float__")):
        raise TypeError(f"{name} returned {value!r:.80}, expected a number or None")
    number = None if value is None else float(value)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{name} returned {number}, expected a finite number or None")
    return number


def _answer(call: Callable[[], Any]) -> Answer:
    """What a call gave or raised. A MemoryError is no answer: it ends the fork."""
    try:
        return {"value": call()}
    except MemoryError:
        raise
    except BaseException as error:  # sys.exit() in a reward function must not look like a crash
        return {"raised": _describe(error)}


def _describe(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    hint = f"; {HINT}" if was_denied(error) else ""
    return f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS] + where + hint


if __name__ == "__main__":
    main()
