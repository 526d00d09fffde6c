"""Cuts the program out of a completion. The text is hostile: nothing parses it, and all work is linear in it."""

from __future__ import annotations

import re

_FENCE = re.compile(r"( {0,12})(`{3,}+|~{3,}+)[ \t]*+([^`\s]*+)[^`]*+")
"""Possessive: nothing is tried twice, so that the work is linear."""
_TAGS = {
    "python": frozenset({"python", "py", "python3", "py3"}),
    "bash": frozenset({"bash", "sh", "shell"}),
    "cpp": frozenset({"cpp", "c++", "cc", "cxx"}),
    "javascript": frozenset({"javascript", "js", "node"}),
}
_THOUGHT_ENDS = "</think>"
_INDENTATION = "    "


def extract_program(text: str, language: str = "python") -> str:
    """The program in a completion; empty if there is none.

    It is the last fenced block in that language, else the last one that names no language, else the last one. A
    block that is not closed, in a completion that was cut off, goes to the end. A text without a fence is a program
    as it stands. What stands before `</think>` does not count.
    """
    text = text.rpartition(_THOUGHT_ENDS)[2].replace("\r\n", "\n")
    blocks = _blocks(text)
    if not blocks:
        return text if text.strip() else ""
    written = [(tag, body) for tag, body in blocks if body.strip()]
    for tags in (_TAGS.get(language, frozenset((language,))), frozenset(("",))):
        chosen = [body for tag, body in written if tag in tags]
        if chosen:
            return chosen[-1]
    return written[-1][1] if written else ""


def complete(source: str, prompt: str, name: str) -> str:
    """The whole program for a prompt that ends with the head of the function `name`.

    A source that defines the function, or a class Solution, gets what the prompt has before it: imports and
    helpers. Any other source is taken for the function's body.
    """
    definition = re.compile(
        rf"^(?:(?:async[ \t]+)?def|class)[ \t]+(?:{re.escape(name)}|Solution)\b|^{re.escape(name)}[ \t]*=(?!=)",
        re.MULTILINE,
    )
    if not definition.search(source):
        separator = "" if prompt.endswith("\n") else "\n"
        return f"{prompt}{separator}{_as_body(source)}"
    head = definition.search(prompt)
    if head is None or "__future__" in source:  # such an import must stand first
        return source
    return f"{prompt[: head.start()]}\n{source}"


def _as_body(source: str) -> str:
    """The source, indented where its first line is not: by as much as puts it level with the lines after it."""
    lines = source.split("\n")
    first = next(number for number, line in enumerate(lines) if line.strip())
    if lines[first][0] in " \t":
        return source
    rest = [line for line in lines[first + 1 :] if line.strip()]
    opens_block = lines[first].rstrip().endswith((":", "(", "[", "{", "\\"))
    deep = bool(rest) and rest[0].startswith(2 * _INDENTATION)
    only_first = all(line.startswith(_INDENTATION) for line in rest) and (deep or not opens_block)
    if only_first:  # stripping the text took the indentation of its first line
        lines[first] = _INDENTATION + lines[first]
        return "\n".join(lines)
    return "\n".join(_INDENTATION + line if line.strip() else line for line in lines)


def _blocks(text: str) -> list[tuple[str, str]]:
    """Fenced blocks: tag in lower case, and text."""
    blocks: list[tuple[str, str]] = []
    body: list[str] = []
    opened: re.Match[str] | None = None
    for line in text.split("\n"):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            if fence is not None:
                opened, body = fence, []
        elif fence is not None and _closes(fence, opened):
            blocks.append((opened[3].lower(), "\n".join(body)))
            opened = None
        else:
            body.append(_without_indentation(line, len(opened[1])))
    if opened is not None:
        blocks.append((opened[3].lower(), "\n".join(body)))
    return blocks


def _closes(fence: re.Match[str], opened: re.Match[str]) -> bool:
    mark = fence[2]
    return mark[0] == opened[2][0] and len(mark) >= len(opened[2]) and fence[0].strip() == mark


def _without_indentation(line: str, count: int) -> str:
    return line[min(count, len(line) - len(line.lstrip(" "))) :]
