"""Completions and prompts in the two shapes that reward functions get: text, or lists of chat messages."""

from __future__ import annotations

from typing import Any

from funicular.rewards.types import ImagePart, Task, TextPart


def text_of(completion: str | list[dict[str, Any]]) -> str:
    """The text of one completion: the string itself, or the contents of its messages."""
    if isinstance(completion, str):
        return completion
    return "".join(content_text(message["content"]) for message in completion)


def content_text(content: str | list[TextPart | ImagePart]) -> str:
    """What a message says; an image stands there by its name."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] if part["type"] == "text" else f"[image {part['name']}]" for part in content)


def texts_of(completions: list[Any]) -> list[str]:
    """(G) the text of each completion."""
    return [text_of(completion) for completion in completions]


def shaped(task: Task, texts_G: list[str]) -> tuple[list[Any], list[Any]]:
    """(G) prompts and (G) completions as the task's prompt has them: text, or message lists as TRL hands
    them."""
    if isinstance(task.prompt, str):
        return [task.prompt] * len(texts_G), texts_G
    prompt = [dict(message) for message in task.prompt]
    return [prompt] * len(texts_G), [[{"role": "assistant", "content": text}] for text in texts_G]
