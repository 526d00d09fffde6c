r"""A task's reference answer written as a completion that its verifier must call correct.

It shows that data and verifier fit, before a run learns from wrong verdicts (`launch/health.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from funicular.rewards.choice import LETTERS
from funicular.rewards.mathematics import final_expression
from funicular.rewards.messages import content_text
from funicular.rewards.needle import needles_of
from funicular.rewards.numeric import GSM8K_MARK
from funicular.rewards.types import Task

Options = Mapping[str, Any]


def reference_text(task: Task, options: Options) -> str | None:
    """The completion; None where the task has no reference, or none can be made out of it.

    Args:
        options: `reward.verifier_options`.

    Raises:
        ValueError: the verifier is not in REFERENCES, or the reference is not what it needs.
    """
    text = _untagged(task, options)
    tag = options.get("tag", _DEFAULT_TAGS.get(task.verifier))
    return f"<{tag}>{text}</{tag}>" if tag and text is not None else text


def answer_in_tags(task: Task, options: Options) -> str | None:
    """The answer as a policy writes it that does no more than the prompt asks: `<answer>25</answer>`.

    None where the prompt asks for no such tags, or for the mark that the verifier reads besides, or where the reference
    is a whole solution.

    Raises:
        ValueError: as reference_text.
    """
    text, prompt = _untagged(task, options), _prompt_text(task)
    if text is None or "<answer>" not in prompt:
        return None
    if marks := _MARKS.get(task.verifier, ()):
        text = str(task.answer).strip()
    if any(mark in prompt or mark in text for mark in marks):
        return None
    return f"<answer>{text}</answer>"


def _untagged(task: Task, options: Options) -> str | None:
    if task.verifier not in REFERENCES:
        raise ValueError(f"verifier {task.verifier}: funicular.rewards.reference does not know its answers")
    write = REFERENCES[task.verifier]
    if write is None or task.answer is None or not task.answer.strip():
        return None
    return write(task, options)


def _prompt_text(task: Task) -> str:
    if isinstance(task.prompt, str):
        return task.prompt
    return "\n".join(content_text(message["content"]) for message in task.prompt)


def _as_it_is(task: Task, options: Options) -> str:
    return str(task.answer).strip()


def _gsm8k(task: Task, options: Options) -> str:
    answer = str(task.answer).strip()
    return answer if GSM8K_MARK in answer else f"{GSM8K_MARK} {answer}"


def _boxed(task: Task, options: Options) -> str:
    answer = str(task.answer).strip()
    return answer if "\\boxed" in answer else f"\\boxed{{{(final_expression(answer) or answer).strip('$')}}}"


def _choice(task: Task, options: Options) -> str:
    answer, index_from = str(task.answer).strip(), options.get("index_from")
    if index_from is not None and answer.isdecimal():
        answer = str(options.get("letters", LETTERS))[int(answer) - index_from]
    return f"The answer is {answer}"


def _needles(task: Task, options: Options) -> str:
    return ", ".join(needles_of(str(task.answer).strip()))


def _program(task: Task, options: Options) -> str:
    """A fenced block; HumanEval's solutions are bodies, and go after what the option `prefix_column` names."""
    prefix = options.get("prefix_column")
    before = str(task.columns.get(prefix, "")) if prefix else ""
    source = f"{before}{task.answer}"
    return f"```{options.get('language', 'python')}\n{source.rstrip()}\n```"


REFERENCES: dict[str, Callable[[Task, Options], str] | None] = {
    "exact_number": _as_it_is,
    "number": _as_it_is,
    "gsm8k": _gsm8k,
    "math": _boxed,
    "boxed": _boxed,
    "exact_text": _as_it_is,
    "normalised_text": _as_it_is,
    "choice": _choice,
    "json": _as_it_is,
    "regex": None,  # texts that an expression matches cannot be told from the expression
    "needle": _needles,
    "reasoning_gym": _as_it_is,
    "code": _program,
}
"""By the verifier's name; None: it has references, but no completion can be made out of them."""
_DEFAULT_TAGS = {"reasoning_gym": "answer"}
"""Verifiers that read a tag unless they are told otherwise."""
_MARKS = {"math": ("\\boxed", "####"), "boxed": ("\\boxed",), "gsm8k": ("####",)}
"""What verifiers look for, and a prompt must therefore ask for."""
