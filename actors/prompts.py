"""Tasks to token ids: messages through a chat template, plain text as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from funicular.rewards.types import Message, Task

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Roles and text in lines, for base models."""


class Prompts:
    """Renders tasks with one tokenizer and one chat template.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: `auto`, `plain` or the path of a Jinja file, as in `model.chat_template`.
    """

    def __init__(self, tokenizer: Any, chat_template: str) -> None:
        self._tokenizer = tokenizer
        self.template = chat_template_text(tokenizer, chat_template)

    def render(self, task: Task) -> list[int]:
        """Token ids of the task's prompt, with the header of the assistant's turn for messages.

        Raises:
            ValueError: the template refuses these messages (some know no system role).
        """
        from jinja2 import TemplateError

        if isinstance(task.prompt, str):
            return list(self._tokenizer(task.prompt)["input_ids"])
        try:
            return list(
                self._tokenizer.apply_chat_template(
                    [_readable(message) for message in task.prompt],
                    chat_template=self.template,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in task.prompt)
            raise ValueError(
                f"task {task.task_id}: the chat template refuses messages with roles {roles}: {error}; "
                "model.chat_template=plain takes any"
            ) from error

    def decode(self, token_ids: list[int]) -> str:
        """Text for scoring and display; special tokens are left out, and spaces stay as they are."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _readable(message: Message) -> dict[str, Any]:
    """The message; image parts without their names, which no template knows."""
    content = message["content"]
    if isinstance(content, str):
        return dict(message)
    parts = [dict(part) if part["type"] == "text" else {"type": "image"} for part in content]
    return {"role": message["role"], "content": parts}


def load_tokenizer(model_folder: str) -> Any:
    """The model's tokenizer, from its folder alone."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder, local_files_only=True)


def chat_template_text(tokenizer: Any, chat_template: str) -> str:
    """The Jinja text that `model.chat_template` stands for.

    Raises:
        ValueError: neither `auto` nor `plain`, and no file of that name.
    """
    if chat_template == "auto" and tokenizer.chat_template is not None:
        return _default_of(tokenizer.chat_template)
    if chat_template in ("auto", "plain"):
        return _begin_token(tokenizer) + PLAIN_TEMPLATE
    path = Path(chat_template).expanduser()
    if not path.is_file():
        raise ValueError(f"model.chat_template={chat_template}: no such file; expected auto, plain or a Jinja file")
    return path.read_text()


def _default_of(template: str | dict[str, str]) -> str:
    """Tokenizers may carry several templates by name."""
    return template if isinstance(template, str) else template["default"]


def _begin_token(tokenizer: Any) -> str:
    """Templates are tokenised without special tokens: one that this tokenizer puts first must stand in the text."""
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" if begins else ""
