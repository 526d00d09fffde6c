import inspect
from typing import Any

import pytest

from funicular.rewards.functions import FUNCTIONS, arguments_for, prepare
from funicular.rewards.messages import shaped, text_of
from funicular.rewards.types import Message, Task

GOOD_XML = "<reasoning>\nadd\nthem\n</reasoning>\n<answer>\n72\n</answer>"
NEEDED: dict[str, dict[str, Any]] = {
    "length": {"max": 10},
    "overlong": {"max": 10, "cache": 5},
    "regex_match": {"pattern": "x"},
    "json_schema": {"schema": {"type": "object"}},
    "language": {"language": "en"},
    "keywords": {"required": ["refund"], "forbidden": ["a b"]},
}
"""Options without which a function cannot be called."""
OF_OTHERS = {"llm_judge", "reasoning_gym_score"}
"""They have tests of their own: they need an endpoint, or an extra."""
BUILT_INS = sorted(set(FUNCTIONS) - OF_OTHERS)
PIECES = (
    "1", "1,", "a", "A\n", "\\boxed{", "$", "$$", "\\(", "\\[", "```", "```\n", "`", "<think>", "<answer>", "</answer>",
    "<reasoning>", "</reasoning>\n<answer>\n", "</reasoning> ", "<a", "https://", "\n", " ", ". ", "a b ", "Dear ",
    "Best,\n", "答", "{", "\x00", "\ud800", "the ", "the correct answer is: option ", "Maria ", "[", '"',
)  # fmt: skip


def reward(name: str, texts: list[str], **columns: Any) -> list[float | None]:
    return FUNCTIONS[name](prompts=["p"] * len(texts), completions=texts, **columns)


def everything(texts: list[str]) -> dict[str, Any]:
    """All that a reward function is handed."""
    count = len(texts)
    return {
        "prompts": ["p"] * count,
        "completions": texts,
        "completion_ids": [[1, 2]] * count,
        "answer": ["72"] * count,
        "correct": [True] * count,
        "details": [{"tests_passed": "1", "tests_total": "2"}] * count,
        "task_id": ["t"] * count,
        "recipient": ["Maria"] * count,
    }


@pytest.mark.parametrize("name", BUILT_INS)
def test_every_built_in_checks_its_options_without_completions(name: str) -> None:
    nothing = {key: value for key, value in everything([]).items() if key != "recipient"}
    assert FUNCTIONS[name](**nothing, **NEEDED.get(name, {})) == []


@pytest.mark.parametrize("name", BUILT_INS)
def test_every_built_in_reads_chat_completions_as_it_reads_texts(name: str) -> None:
    texts = [GOOD_XML, "Dear Maria,\nThe answer is B.\nBest,\nTom", "", "72 " * 100]
    chat = [[{"role": "assistant", "content": text}] for text in texts]
    given, options = everything(texts), NEEDED.get(name, {})
    assert FUNCTIONS[name](**given, **options) == FUNCTIONS[name](**(given | {"completions": chat}), **options)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_built_in_asks_for_nothing_but_what_it_is_handed(name: str) -> None:
    """Options are the keyword-only parameters; further columns are swallowed."""
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    given = {p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert given <= set(everything([])) - {"recipient"}
    assert any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    assert FUNCTIONS[name].__doc__


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BUILT_INS)
def test_no_text_makes_a_built_in_hang_or_raise(name: str) -> None:
    """Of 30,000 characters each; an expression that backtracks would take hours."""
    texts = [(piece * 30_000)[:30_000] + end for piece in PIECES for end in ("", "!")]
    values = FUNCTIONS[name](**everything(texts), **NEEDED.get(name, {}))
    assert len(values) == len(texts)
    assert all((value is not None and -1.0 <= value <= 2.0) or name == "gsm8k_xml_count" for value in values)


def test_correctness_follows_the_verifier() -> None:
    assert reward("correctness", ["a", "b"], correct=[True, False]) == [1.0, 0.0]


def test_test_fraction_reads_the_sandboxs_counts_and_does_not_apply_without_them() -> None:
    counted = [{"tests_passed": "3", "tests_total": "4"}, {"tests_passed": "0", "tests_total": "0"}]
    assert reward("test_fraction", ["a", "b"], details=counted) == [0.75, 0.0]
    assert reward("test_fraction", ["a", "b"], details=[{}, {"extracted": "5"}]) == [None, None]


def test_closeness_falls_with_distance_and_skips_tasks_without_a_number() -> None:
    assert reward("closeness", ["10", "it is 5", "-90", "?"], answer=["10"] * 4) == [1.0, 0.5, 0.0, 0.0]
    assert reward("closeness", ["10", "12"], answer=["10"] * 2, tolerance=0.4) == [1.0, pytest.approx(0.5)]
    assert reward("closeness", ["10"], answer=["a cat"]) == [None]
    assert reward("closeness", ["9" * 400], answer=["10"]) == [0.0]


def test_the_five_gsm8k_functions_give_four_to_a_perfect_text() -> None:
    names = ("correctness", "integer", "strict_format", "soft_format", "xml_count")
    perfect = [reward(f"gsm8k_{name}", [GOOD_XML], answer=["72"])[0] for name in names]
    assert perfect == [2.0, 0.5, 0.5, 0.5, 0.5]


def test_gsm8k_functions_grade_partly_right_texts() -> None:
    loose = "hm <reasoning>x</reasoning> <answer>$72.0</answer> ok"
    assert reward("gsm8k_correctness", [loose, "72", "<answer>71</answer>"], answer=["72"] * 3) == [2.0, 0.0, 0.0]
    assert reward("gsm8k_integer", [loose, "<answer>-3</answer>", "3"]) == [0.0, 0.5, 0.0]
    assert reward("gsm8k_strict_format", [loose, GOOD_XML + "\n", "x" + GOOD_XML]) == [0.0, 0.5, 0.0]
    assert reward("gsm8k_soft_format", [loose, "<answer>1</answer>", "</reasoning><answer>1</answer>"]) == [
        0.5,
        0.0,
        0.0,
    ]
    counts = reward("gsm8k_xml_count", [loose, "<answer>1", "none"])
    assert counts == [pytest.approx(0.5 - 0.002), 0.125, 0.0]


def test_built_ins_read_chat_completions() -> None:
    chat = Task(task_id="t", prompt=(Message(role="user", content="Q"),), answer="72", verifier="gsm8k", columns={})
    prompts, completions = shaped(chat, ["<answer>72</answer>", "no"])
    assert prompts[0] == [{"role": "user", "content": "Q"}]
    assert completions[0] == [{"role": "assistant", "content": "<answer>72</answer>"}]
    assert [text_of(c) for c in completions] == ["<answer>72</answer>", "no"]
    assert FUNCTIONS["gsm8k_correctness"](prompts=prompts, completions=completions, answer=["72", "72"]) == [2.0, 0.0]


def test_a_function_without_kwargs_gets_only_what_it_names() -> None:
    assert arguments_for(lambda answer: [], {"answer": [1], "other": [2]}) == {"answer": [1]}
    assert arguments_for(lambda **all_: [], {"answer": [1], "other": [2]}) == {"answer": [1], "other": [2]}


def test_preparing_a_function_that_needs_nothing_is_allowed() -> None:
    for name in ("correctness", "mine.py:f"):
        prepare(name)
