"""Built-in reward functions by name, and how a reward function is called.

A reward function has TRL's signature: keyword arguments in, one number per completion out.

    def function(prompts, completions, **columns) -> list[float | None]

`completions` are texts, or one-message lists where the task's prompt is chat messages; `columns` are the
dataset's columns as lists of G, and `answer`, `task_id`, `correct` (what the verifier said), `details` (of its
verification) and `completion_ids` (tokens). None means: does not apply to this task.

A built-in's options are its keyword-only parameters. It looks at them even when there are no completions: so they
are checked before a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from funicular.rewards import gsm8k, json_data, llm_judge
from funicular.rewards.choice import choice_format
from funicular.rewards.correctness import closeness, correctness, fraction_of_tests
from funicular.rewards.keywords import keywords
from funicular.rewards.language import language
from funicular.rewards.length import length, overlong
from funicular.rewards.letter import recipient, signature
from funicular.rewards.needle import needle_found
from funicular.rewards.pattern import regex_match
from funicular.rewards.reasoning_gym import reasoning_gym_score
from funicular.rewards.repetition import degenerate, repetition
from funicular.rewards.tags import format_tags

RewardFunction = Callable[..., list[float | None]]

FUNCTIONS: dict[str, RewardFunction] = {
    "correctness": correctness,
    "test_fraction": fraction_of_tests,
    "closeness": closeness,
    "format_tags": format_tags,
    "regex_match": regex_match,
    "json_schema": json_data.json_schema,
    "choice_format": choice_format,
    "length": length,
    "overlong": overlong,
    "repetition": repetition,
    "degenerate": degenerate,
    "language": language,
    "keywords": keywords,
    "recipient": recipient,
    "signature": signature,
    "needle_found": needle_found,
    "llm_judge": llm_judge.llm_judge,
    "reasoning_gym_score": reasoning_gym_score,
    "gsm8k_correctness": gsm8k.gsm8k_correctness,
    "gsm8k_integer": gsm8k.gsm8k_integer,
    "gsm8k_strict_format": gsm8k.gsm8k_strict_format,
    "gsm8k_soft_format": gsm8k.gsm8k_soft_format,
    "gsm8k_xml_count": gsm8k.gsm8k_xml_count,
}
_SLOW: dict[str, Callable[[], None]] = {"json_schema": json_data.prepare, "llm_judge": llm_judge.prepare}


def prepare(name: str) -> None:
    """Do the slow imports of what stands in FUNCTIONS under this name, before the process forks."""
    if name in _SLOW:
        _SLOW[name]()


def arguments_for(function: RewardFunction, available: Mapping[str, Any]) -> dict[str, Any]:
    """What of `available` the function takes by name; all of it if it has **kwargs."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(available)
    return {name: value for name, value in available.items() if name in parameters}
