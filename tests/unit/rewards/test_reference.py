"""Reference answers as completions: every verifier calls its own correct, and an empty text not."""

from __future__ import annotations

from typing import Any

import pytest

from funicular.rewards.reference import REFERENCES, reference_text
from funicular.rewards.types import Task
from funicular.rewards.verifiers import SANDBOXED, VERIFIERS


def task(verifier: str, answer: str | None, **columns: Any) -> Task:
    return Task(task_id="a", prompt="p", answer=answer, verifier=verifier, columns=columns)


def test_every_verifier_is_known() -> None:
    assert set(REFERENCES) == {*VERIFIERS, *SANDBOXED}


@pytest.mark.parametrize(
    ("verifier", "answer", "options"),
    [
        ("exact_number", "1,200", {}),
        ("number", "1.5e-3", {}),
        ("number", "12", {"tag": "answer"}),
        ("gsm8k", "72", {}),
        ("gsm8k", "so 70 + 2\n#### 72", {}),
        ("math", r"\frac{1}{2}", {}),
        ("math", r"$x^2$", {}),
        ("math", "She sells 48/2 = <<48/2=24>>24 clips in May.\nSo 48+24 = <<48+24=72>>72.\n#### 72", {}),
        ("boxed", "(1, 2)", {}),
        ("boxed", r"\boxed{7}", {}),
        ("exact_text", "Paris, France", {"tag": "answer"}),
        ("normalised_text", "The Hague", {}),
        ("choice", "C", {}),
        ("choice", "2", {"index_from": 0}),
        ("json", '{"a": [1, 2.5]}', {"tag": "json"}),
        ("needle", "blue lamp", {}),
        ("needle", '["12345", "67890"]', {}),
    ],
)
def test_the_verifier_calls_its_reference_correct_and_an_empty_text_not(
    verifier: str, answer: str, options: dict[str, Any]
) -> None:
    asked = task(verifier, answer)
    text = reference_text(asked, options)
    assert text is not None
    assert VERIFIERS[verifier](asked, text, **options).correct
    assert not VERIFIERS[verifier](asked, "", **options).correct


def test_a_program_is_a_fenced_block_after_its_prefix() -> None:
    asked = task("code", "    return 1\n", prompt='def f():\n    """One."""\n')
    assert reference_text(asked, {"prefix_column": "prompt"}) == (
        '```python\ndef f():\n    """One."""\n    return 1\n```'
    )
    assert reference_text(asked, {"language": "bash"}) == "```bash\n    return 1\n```"


@pytest.mark.parametrize(("verifier", "answer"), [("regex", "a+"), ("code", None), ("gsm8k", " ")])
def test_without_a_usable_reference_there_is_no_text(verifier: str, answer: str | None) -> None:
    assert reference_text(task(verifier, answer), {}) is None
