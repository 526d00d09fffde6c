"""Records of what is asked and what scoring said. Plain Python: no Ray, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypedDict


class TextPart(TypedDict):
    """Text in a message that has images too."""

    type: Literal["text"]
    text: str


class ImagePart(TypedDict):
    """Where an image stands in a message; `Task.images` has them in this order."""

    type: Literal["image"]
    name: str
    """For people."""


class Message(TypedDict):
    """One chat message, as chat templates read it."""

    role: str
    content: str | list[TextPart | ImagePart]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskImage:
    """One image of a prompt, encoded as PNG, JPEG or the like."""

    name: str
    """For people: the file's name, or where the data has it."""
    source: str | bytes
    """Absolute path of a file, on storage that all nodes share; or the encoded bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem given to the policy."""

    task_id: str
    """Stable across runs and machines: a column of the dataset, or a hash of prompt and answer."""
    prompt: str | tuple[Message, ...]
    """Plain text for base models, or chat messages that the model's chat template renders."""
    images: tuple[TaskImage, ...] = ()
    """Of the image parts of `prompt`, in their order."""
    answer: str | None
    """Reference answer, already cut out of the dataset's column (`data.answer_pattern`)."""
    completion: str | None = None
    """A completion to learn from instead of sampled ones (`data.completion_column`); None: there is none."""
    structured_output: Mapping[str, Any] | None = None
    """What binds the form of completions: one of json_schema, regex, choice and grammar with its value
    (`data.structured_output_column`); None: it is free."""
    verifier: str
    """Name of the verifier that decides correct or not (`funicular.rewards.verifiers`)."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The dataset's other columns, handed to reward functions by name."""


class Status(StrEnum):
    """What became of scoring one completion. The sandbox's finer outcome stands in `details`."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    TIMEOUT = "timeout"
    INFRA_ERROR = "infra_error"
    """Our fault, not the policy's: the completion is void, never punished (law 4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What scoring said of one completion."""

    reward: float | None
    """Weighted sum of the reward functions that apply. None: no valid reward, the completion is void."""
    breakdown: Mapping[str, float | None]
    """Each reward function's own number, unweighted; None where it does not apply."""
    status: Status
    details: Mapping[str, str] = field(default_factory=dict)
    """For people: what the verifier extracted, why it failed, the sandbox's finer outcome."""
