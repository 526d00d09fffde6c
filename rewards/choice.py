r"""Multiple choice: which letter a text finally names, as a verifier (choice) and a reward function (choice_format).

A text states its choice in `\boxed{C}`, in words such as `The answer is (C)`, or in a last line that is only the
letter. The last statement counts; one that names several different letters names none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from funicular.rewards.boxed import last_boxed
from funicular.rewards.messages import texts_of
from funicular.rewards.nearest import known_names
from funicular.rewards.plain_text import normalise
from funicular.rewards.tags import within
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification, found, reference_of
from funicular.rewards.words import last_match

LETTERS = "ABCDEFGHIJ"

_CUE = re.compile(
    r"\b(?:answers?|(?:correct|right|best|my|final) (?:option|choice)s?)(?: (?:choice|option|letter))?"
    r"(?: to (?:the|this) (?:question|problem))?[\s*_`\"')]{0,4}"
    r"(?:\b(?:is|are|was|would be|should be|must be|will be)\b|[:=]| [-–—] )[\s*_`:]{0,6}"
    r"(?:(?:therefore|thus|then|clearly|indeed|definitely|(?:most )?(?:likely|probably))\b,? ?)?"
    r"(?:(?:the )?(?:option|choice|letter|answer)s?\b[\s*_:]{0,4})?",
    re.IGNORECASE,
)
# (C) is the correct answer. A second letter before it makes the statement name two.
_CORRECT = re.compile(
    r"\b(?:(?P<other>[A-J])\b[)\]*_]{0,4} ?(?:,|/|or\b|and\b) ?(?:[Oo]ption )?[(\[*_]{0,4})?"
    r"(?P<letter>[A-J])\b[)\]*_]{0,4} (?:is|would be|must be) (?:therefore |thus |clearly )?"
    r"(?:the )?(?:only )?(?:correct|right|best)\b"
)
_MARKS = r"(?:\\(?:boxed|text|textbf|textrm|mathbf|mathrm)\s?\{|\\[(\[]|[(\[{*_`\"'$ \t])"
_OPEN = re.compile(rf"{_MARKS}{{0,8}}")
_CLOSE = re.compile(r"(?:\\[)\]]|[)\]}*_`\"'$]){0,8}")
_AND = re.compile(r"[ \t]*(?:[,/&;+]|\band\b|\bor\b)?[ \t]*(?:and\b|or\b)?[ \t]*(?:(?:option|choice)\b)?")
_GLUED = re.compile(r"\w|['’]\w|[+#]|-\w")
_ARTICLE = re.compile(r"\s+(?!(?:and|or|as|is|because|since|for|but|with)\b)[a-z]")
_CLAUSE = re.compile(r"\s+(?:is|are|was|were|would|does|do|can|has|says)\b")
_STATEMENT_CHARACTERS = 500
_END_OF_STATEMENT = re.compile(r"[,;(]\s|\.\s|\.$|\s(?:because|since|as)\s")
_NOTHING = " \t.!,;:*_"


def choice(
    task: Task,
    text: str,
    *,
    letters: str = LETTERS,
    choices_column: str | None = None,
    index_from: int | None = None,
    tag: str | None = None,
) -> Verification:
    """Correct if the text finally names the reference's letter.

    Args:
        letters: those that may be named.
        choices_column: the dataset's column with the options' texts, in order (a list, or ARC's {text: [...]}). A
            text may then name an option by its text; so may the reference.
        index_from: the reference is a number, counted from this one, as in MMLU (0).
        tag: look in the last <tag>...</tag> only.

    Raises:
        ValueError: the reference is none of the options, or an option of the verifier is impossible.
    """
    _check(letters)
    choices = None if choices_column is None else _choices(task.columns, choices_column, letters)
    usable = letters if choices is None else letters[: len(choices)]
    reference = _reference(reference_of(task, "choice"), usable, choices, index_from)
    named = named_letters(within(text, tag), usable, choices)
    return found(" or ".join(named) or None, correct=named == [reference])


def choice_format(completions: list[Any], *, letters: str = LETTERS, **_: Any) -> list[float | None]:
    """1.0 if the text finally names exactly one letter, the right one or not; else 0.0."""
    _check(letters)
    return [1.0 if len(named_letters(text, letters)) == 1 else 0.0 for text in texts_of(completions)]


def named_letters(text: str, letters: str = LETTERS, choices: Sequence[str] | None = None) -> list[str]:
    """The different letters that the text's last statement names: none, one, or several."""
    statements = [
        _last_lines(text, letters, choices),
        _boxed(text, letters, choices),
        _cued(text, letters, choices),
        _called_correct(text, letters),
    ]
    made = [statement for statement in statements if statement[1]]
    return max(made, default=(0, []), key=lambda statement: statement[0])[1]


def _boxed(text: str, letters: str, choices: Sequence[str] | None) -> tuple[int, list[str]]:
    box = last_boxed(text)
    if box is None:
        return 0, []
    return box.start, _letters_at(box.content, 0, letters)[0] or _by_text(box.content, letters, choices)


def _cued(text: str, letters: str, choices: Sequence[str] | None) -> tuple[int, list[str]]:
    for cue in reversed(list(_CUE.finditer(text))):
        statement = text[cue.end() : cue.end() + _STATEMENT_CHARACTERS].lstrip().partition("\n")[0]
        named = _letters_at(text, cue.end(), letters)[0] or _by_text(statement, letters, choices)
        if named:
            return cue.start(), named
    return 0, []


def _called_correct(text: str, letters: str) -> tuple[int, list[str]]:
    last = last_match(_CORRECT, text)
    if last is None:
        return 0, []
    return last.start(), [one for one in dict.fromkeys((last["other"], last["letter"])) if one and one in letters]


def _last_lines(text: str, letters: str, choices: Sequence[str] | None) -> tuple[int, list[str]]:
    """The letters of the lines at the end that are each nothing but a choice: a list of all of them names none."""
    named: list[str] = []
    position = len(text)
    for line in reversed(text.splitlines(keepends=True)):
        if line.strip():
            here = _only_letters(line.strip(), letters, choices)
            if not here:
                break
            named += [letter for letter in here if letter not in named]
        position -= len(line)
    return position, named


def _only_letters(line: str, letters: str, choices: Sequence[str] | None) -> list[str]:
    named, end = _letters_at(line, 0, letters)
    rest = line[end:].strip(_NOTHING)
    if named and not rest:
        return named
    by_text = _by_text(rest if named else line, letters, choices)
    return list(dict.fromkeys(named + by_text)) if by_text else []


def _letters_at(text: str, position: int, letters: str) -> tuple[list[str], int]:
    """The different letters of an enumeration that begins here, such as `(A)` or `A, B and C`, and where it ends."""
    named: list[str] = []
    end = position
    while (one := _letter_at(text, position, letters)) is not None:
        letter, after = one
        if named and _CLAUSE.match(text, after):
            break  # C, A is wrong
        end = after
        named += [letter] if letter not in named else []
        between = _AND.match(text, end)
        position = between.end() if between else end
    return named, end


def _letter_at(text: str, position: int, letters: str) -> tuple[str, int] | None:
    opening = _OPEN.match(text, position)
    start = opening.end() if opening else position
    letter, after = text[start : start + 1], start + 1
    if not letter or letter.upper() not in letters or _GLUED.match(text, after):
        return None
    closing = _CLOSE.match(text, after)
    end = closing.end() if closing else after
    marked = end > after and bool(opening and opening.group().strip())
    if not marked and letter.islower():
        # A lower-case letter without brackets is one only if nothing follows it on its line.
        if text[end : end + _STATEMENT_CHARACTERS].partition("\n")[0].strip(_NOTHING):
            return None
    elif not marked and letter in "AI" and _ARTICLE.match(text, end):
        return None
    return letter.upper(), end


def _by_text(statement: str, letters: str, choices: Sequence[str] | None) -> list[str]:
    """The letters of the choices whose text the statement is, up to its first stop."""
    if choices is None:
        return []
    readings = {normalise(statement), normalise(_END_OF_STATEMENT.split(statement, maxsplit=1)[0])} - {""}
    return [letter for letter, one in zip(letters, choices, strict=False) if normalise(one) in readings]


def _reference(answer: str, letters: str, choices: Sequence[str] | None, index_from: int | None) -> str:
    if index_from is not None:
        index = int(answer) - index_from if re.fullmatch(r"[0-9]{1,3}", answer) else -1
        if not 0 <= index < len(letters):
            raise ValueError(f"choice: the reference {answer!r} is no number from {index_from} for letters {letters}")
        return letters[index]
    named, end = _letters_at(answer, 0, letters)
    if len(named) == 1 and not answer[end:].strip(_NOTHING):
        return named[0]
    by_text = _by_text(answer, letters, choices)
    if len(by_text) != 1:
        raise ValueError(
            f"choice: the reference {answer[:80]!r} is no letter of {letters}; "
            "give choices_column for texts, or index_from for numbers"
        )
    return by_text[0]


def _choices(columns: Mapping[str, Any], column: str, letters: str) -> list[str]:
    if column not in columns:
        raise ValueError(f"choice: the data has no column {column!r}; {known_names(column, columns)}")
    raw = columns[column]
    listed = raw.get("text") if isinstance(raw, Mapping) else raw
    if isinstance(listed, str) or not listed or len(listed) > len(letters):
        raise ValueError(f"choice: column {column} holds {raw!r:.80}, expected a list of at most {len(letters)} texts")
    return [str(one) for one in listed]


def _check(letters: str) -> None:
    if len(letters) < 2 or not letters.isalpha() or letters != letters.upper() or len(set(letters)) != len(letters):
        raise ValueError(f"letters={letters!r}: expected different capital letters, such as ABCD")
