"""Judges function calls: one `serve` job per submission, its arguments revealed call by call.

Expected values stay here, and the next arguments are sent only after the reply before them was compared.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

from funicular.rewards.sandbox import codec
from funicular.rewards.sandbox.account import Account, cut
from funicular.rewards.sandbox.call_channel import (
    GRACE_S,
    MAX_READY_BYTES,
    ChannelError,
    ChannelJob,
    ProtocolViolation,
    check_ready,
    read_message,
    why_it_ended,
)
from funicular.rewards.sandbox.compare import same_value
from funicular.rewards.sandbox.slot.wire import Job, JobKind
from funicular.rewards.sandbox.slot_process import SlotProcess
from funicular.rewards.sandbox.types import CallCase, CallTests, CaseResult, JobReport, Limits, Outcome

_ID_BITS = 53


def judge_calls(
    slot: SlotProcess, source: bytes, tests: CallTests, limits: Limits, account: Account, *, all_tests: bool
) -> None:
    """Call the program's function with each case's arguments, one after the other.

    Raises:
        SlotLost: the slot died or fell silent.
        ValueError: arguments cannot cross (`check_calls`).
    """
    job = Job(kind=JobKind.SERVE, source=source, limits=limits)
    stopped: ChannelError | None = None
    with ChannelJob(slot, job, limits.longest_wall_s + GRACE_S) as serving:
        channel = serving.channel
        try:
            check_ready(channel.receive(MAX_READY_BYTES))
            for index, case in enumerate(tests.cases):
                began = time.perf_counter()
                # Nobody can write an answer before it has read the question.
                number = secrets.randbits(_ID_BITS)
                line = channel.ask(_request(number, tests.function, case))
                account.look_for(slot.canary, (line,))
                outcome, detail = _judge_reply(line, number, case, tests)
                result = CaseResult(outcome=outcome, cpu_s=0.0, wall_s=time.perf_counter() - began)
                account.add_case(result, f"test {index + 1} of {account.total}: {detail}")
                if outcome is not Outcome.OK and not all_tests:
                    break
            else:
                channel.expect_no_more()
        except ChannelError as error:
            stopped = error
        report = serving.finish()
    account.add_job(report, slot.canary)
    _settle(account, report, stopped)


def check_calls(tests: CallTests, name: str = "tests") -> None:
    """Raises ValueError if the arguments of a case cannot cross to the judged process."""
    for index, case in enumerate(tests.cases):
        try:
            _request(0, tests.function, case)
        except codec.NotPlain as error:
            raise ValueError(
                f"{name}: the arguments of test {index + 1} cannot be given to a function: {error}"
            ) from None


def _settle(account: Account, report: JobReport, stopped: ChannelError | None) -> None:
    """Count the test during which the job ended; or, where all were answered, the last one, if it ended badly."""
    account.violations += isinstance(stopped, ProtocolViolation)
    if stopped is None and account.outcome is not Outcome.OK:
        return
    found = why_it_ended(stopped, report)
    if found is None:
        return
    if len(account.cases) == account.total:
        account.take_back_last()
    outcome, reason = found
    detail = f"test {len(account.cases) + 1} of {account.total}: {reason}"
    account.add_case(CaseResult(outcome=outcome, cpu_s=0.0, wall_s=0.0), detail)


def _request(number: int, function: str, case: CallCase) -> bytes:
    arguments = codec.encode(case.arguments)
    return codec.dumps({"id": number, "function": function, "args": arguments, "mutations": False})


def _judge_reply(line: bytes, number: int, case: CallCase, tests: CallTests) -> tuple[Outcome, str]:
    reply = read_message(line)
    if type(reply.get("id")) is not int or reply["id"] != number:
        raise ProtocolViolation("it answered another call")
    if "raised" in reply:
        raised = f"{str(reply['raised']) or 'an exception'}: {reply.get('message', '')}"
        return Outcome.RUNTIME_ERROR, f"runtime_error: raised {cut(raised)}"
    if "opaque" in reply or "handle" in reply:
        kind = reply.get("opaque") or reply.get("class")
        return Outcome.WRONG, f"expected {_shown(case.expected)}, got an object of type {cut(str(kind))}"
    if "value" not in reply:
        raise ProtocolViolation("a reply without a value")
    try:
        claimed = codec.decode(reply["value"])
    except ValueError as error:
        raise ProtocolViolation(f"a value that is no data: {error}") from None
    if same_value(claimed, case.expected, tests.comparison):
        return Outcome.OK, ""
    return Outcome.WRONG, f"expected {_shown(case.expected)}, got {_shown(claimed)}"


def _shown(value: Any) -> str:
    try:
        return cut(repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return f"a {type(value).__name__} too long to write"
