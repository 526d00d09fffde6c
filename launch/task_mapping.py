"""From a row of a dataset to a task: columns, template, system prompt, reference answer, id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from funicular.launch.config import DataConfig
from funicular.launch.datasets import DataError, Row, column
from funicular.launch.structured_output import structured_output
from funicular.launch.task_images import FoundImage, is_part, listed_images, with_images
from funicular.rewards.messages import content_text
from funicular.rewards.types import Message, Task
from funicular.rewards.verifiers import check_task


@dataclass(frozen=True, slots=True)
class Candidate:
    task: Task
    text: str
    """The user's prompt before any template: with the images, what makes duplicates and overlaps."""
    place: str
    images: tuple[str, ...] = ()
    """What identifies each image of the prompt (`FoundImage.identity`)."""


class TaskMapping:
    """Turns rows into candidates.

    Args:
        verifier: name, put on every task; reference answers and tests are checked against what it can use.
        verifier_options: `reward.verifier_options`. A column that one of them names (`prefix_column`) stays among a
            task's columns, even if it is the prompt's.

    Raises:
        ValueError: an impossible combination of keys.
    """

    def __init__(self, config: DataConfig, verifier: str, verifier_options: Mapping[str, Any] | None = None) -> None:
        if "{prompt}" not in config.prompt_template:
            raise ValueError(f"data.prompt_template={config.prompt_template!r}: expected {{prompt}} in it")
        self._more = template_columns(config)
        if config.system_prompt is not None and not config.chat:
            raise ValueError("data.system_prompt needs chat messages; set data.chat=true or use prompt_template")
        if config.images_column is not None and not config.chat:
            raise ValueError("data.images_column needs chat messages, in which images stand; set data.chat=true")
        self._config = config
        self._verifier = verifier
        self._options = dict(verifier_options or {})
        self._pattern = _compiled(config.answer_pattern)

    def candidate(self, row: Row) -> Candidate:
        """The row's task.

        Raises:
            DataError: a missing column, or a value that cannot be used; names key and row.
        """
        config = self._config
        raw_prompt = column(row, config.prompt_column, "data.prompt_column")
        listed = self._listed_images(row)
        prompt, text, images = self._prompt(raw_prompt, listed, row)
        identities = tuple(found.identity for found in images)
        raw_answer = None if config.answer_column is None else column(row, config.answer_column, "data.answer_column")
        answer = self._answer(raw_answer, row)
        if config.id_column is not None:
            task_id = str(column(row, config.id_column, "data.id_column"))
        else:
            task_id = _hash(raw_prompt, identities, raw_answer)
        named = {value for option, value in self._options.items() if option.endswith("_column")}
        used = {
            config.prompt_column,
            config.answer_column,
            config.id_column,
            config.completion_column,
            config.structured_output_column,
        } - named
        used.add(config.images_column)
        columns = {name: value for name, value in row.values.items() if name not in used}
        task = Task(
            task_id=task_id,
            prompt=prompt,
            images=tuple(found.image for found in images),
            answer=answer,
            completion=self._completion(row),
            structured_output=self._structured_output(row),
            verifier=self._verifier,
            columns=columns,
        )
        try:
            check_task(task, self._options)
        except ValueError as error:
            raise DataError(f"{row.place}: {error}") from None
        return Candidate(task, text, row.place, identities)

    def _listed_images(self, row: Row) -> list[FoundImage]:
        name = self._config.images_column
        if name is None:
            return []
        key = "data.images_column"
        return listed_images(column(row, name, key), row, f"{key}={name}")

    def _prompt(
        self, raw: Any, listed: list[FoundImage], row: Row
    ) -> tuple[str | tuple[Message, ...], str, list[FoundImage]]:
        """The task's prompt, the user's text in it, and its images."""
        config = self._config
        system: tuple[Message, ...] = ()
        if config.system_prompt is not None:
            system = (Message(role="system", content=config.system_prompt),)
        if isinstance(raw, str) and raw.strip():
            text = self._filled(raw, row)
            if not config.chat:
                return text, raw, []
            user, found = with_images([{"role": "user", "content": text}], listed, row, "data.images_column")
            return (*system, *user), raw, found
        if not isinstance(raw, list) or not raw or not all(_is_message(item) for item in raw):
            raise DataError(
                f"data.prompt_column={config.prompt_column}: {row.place} holds {raw!r:.80}; "
                "expected text or a list of {role, content} messages, whose content is text, or a list of parts of "
                "type text or image"
            )
        if not config.chat or config.prompt_template != "{prompt}":
            raise DataError(
                f"{row.place}: the prompt is a list of messages, used as it is; "
                "expected data.chat=true and no data.prompt_template"
            )
        messages, found = with_images(raw, listed, row, f"data.prompt_column={config.prompt_column}")
        if messages[0]["role"] == "system":
            system = ()
        asked = "\n".join(content_text(m["content"]) for m in messages if m["role"] == "user")
        return (*system, *messages), asked, found

    def _filled(self, prompt: str, row: Row) -> str:
        """The template with the prompt and its other columns in it, in one pass: what a column says is never filled."""
        values = {"prompt": prompt}
        for name in self._more:
            value = column(row, name, "data.template_columns")
            values[name] = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
        place = re.compile("|".join(re.escape(f"{{{name}}}") for name in values))
        return place.sub(lambda match: values[match.group()[1:-1]], self._config.prompt_template)

    def _completion(self, row: Row) -> str | None:
        """None where there is none: held-out tasks need none."""
        name = self._config.completion_column
        value = None if name is None else row.values.get(name)
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise DataError(f"data.completion_column={name}: {row.place} holds {value!r:.80}; expected text")
        return value

    def _structured_output(self, row: Row) -> Mapping[str, Any] | None:
        name = self._config.structured_output_column
        if name is None:
            return None
        value = column(row, name, "data.structured_output_column")
        try:
            return structured_output(value)
        except ValueError as error:
            raise DataError(f"data.structured_output_column={name}: {row.place}: {error}") from None

    def _answer(self, raw: Any, row: Row) -> str | None:
        if raw is None:  # check_task says whether the verifier can do without
            return None
        if not isinstance(raw, str | int | float):
            raise DataError(
                f"data.answer_column={self._config.answer_column}: {row.place} holds {raw!r:.80}; "
                "expected text or a number"
            )
        pattern = self._pattern
        if pattern is None:
            return str(raw)
        match = pattern.search(str(raw))
        if match is None or match.group(1) is None:
            raise DataError(f"data.answer_pattern={pattern.pattern!r} does not match {row.place}: {str(raw)[-200:]!r}")
        return match.group(1).strip()


def template_columns(config: DataConfig) -> tuple[str, ...]:
    """The names in `data.template_columns`.

    Raises:
        ValueError: one that the template does not have.
    """
    names = tuple(name.strip() for name in (config.template_columns or "").split(",") if name.strip())
    for name in names:
        if f"{{{name}}}" not in config.prompt_template:
            raise ValueError(f"data.template_columns={config.template_columns}: data.prompt_template has no {{{name}}}")
    return names


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        return False
    content = item.get("content")
    return isinstance(content, str) or (isinstance(content, list) and bool(content) and all(map(is_part, content)))


def _compiled(answer_pattern: str | None) -> re.Pattern[str] | None:
    if answer_pattern is None:
        return None
    try:
        pattern = re.compile(answer_pattern)
    except re.error as error:
        raise ValueError(f"data.answer_pattern={answer_pattern!r}: {error}") from None
    if pattern.groups < 1:
        raise ValueError(f"data.answer_pattern={answer_pattern!r}: expected a group, such as '#### (.*)'")
    return pattern


def _hash(prompt: Any, images: tuple[str, ...], answer: Any) -> str:
    """16 hexadecimal digits of what the dataset says, before templates and patterns, so that those change no
    id."""
    text = prompt if isinstance(prompt, str) else json.dumps(_without_images(prompt), sort_keys=True)
    return hashlib.sha256("\0".join((text, *images, str(answer))).encode()).hexdigest()[:16]


def _without_images(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with image parts that say no more than that an image stands there."""
    return [
        message
        if isinstance(message["content"], str)
        else {**message, "content": [p if p["type"] == "text" else {"type": "image"} for p in message["content"]]}
        for message in messages
    ]
