from pathlib import Path
from typing import Any

import pytest

from funicular.rewards.config import RewardConfig
from funicular.rewards.functions import FUNCTIONS, arguments_for, check_rewards
from funicular.rewards.messages import shaped, text_of
from funicular.rewards.types import Message, Task

GOOD_XML = "<reasoning>\nadd\nthem\n</reasoning>\n<answer>\n72\n</answer>"


def reward(name: str, texts: list[str], **columns: Any) -> list[float | None]:
    return FUNCTIONS[name](prompts=["p"] * len(texts), completions=texts, **columns)


def test_correctness_follows_the_verifier() -> None:
    assert reward("correctness", ["a", "b"], correct=[True, False]) == [1.0, 0.0]


def test_closeness_falls_with_distance_and_skips_tasks_without_a_number() -> None:
    assert reward("closeness", ["10", "it is 5", "-90", "?"], answer=["10"] * 4) == [1.0, 0.5, 0.0, 0.0]
    assert reward("closeness", ["10", "12"], answer=["10"] * 2, tolerance=0.4) == [1.0, pytest.approx(0.5)]
    assert reward("closeness", ["10"], answer=["a cat"]) == [None]
    assert reward("closeness", ["9" * 400], answer=["10"]) == [0.0]


def test_length_to_a_target_and_up_to_a_maximum() -> None:
    ids = [[0] * n for n in (0, 5, 10, 15, 30)]
    assert reward("length", [""] * 5, completion_ids=ids, target=10) == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert reward("length", [""] * 5, completion_ids=ids, max=10) == [1.0, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("options", [{}, {"target": 1, "max": 2}, {"target": 0}])
def test_length_needs_exactly_one_positive_option(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="length"):
        reward("length", [""], completion_ids=[[1]], **options)


def test_format_tags_wants_the_whole_text() -> None:
    texts = [
        "<think>a\nb</think> <answer>1</answer>\n",
        "<answer>1</answer>",
        "x <think></think><answer></answer>",
    ]
    assert reward("format_tags", texts) == [1.0, 0.0, 0.0]


def test_the_five_gsm8k_functions_give_four_to_a_perfect_text() -> None:
    names = ("correctness", "integer", "strict_format", "soft_format", "xml_count")
    perfect = [reward(f"gsm8k_{name}", [GOOD_XML], answer=["72"])[0] for name in names]
    assert perfect == [2.0, 0.5, 0.5, 0.5, 0.5]


def test_gsm8k_functions_grade_partly_right_texts() -> None:
    loose = "hm <reasoning>x</reasoning> <answer>$72.0</answer> ok"
    assert reward("gsm8k_correctness", [loose, "72", "<answer>71</answer>"], answer=["72"] * 3) == [
        2.0,
        0.0,
        0.0,
    ]
    assert reward("gsm8k_integer", [loose, "<answer>-3</answer>", "3"]) == [0.0, 0.5, 0.0]
    assert reward("gsm8k_strict_format", [loose, GOOD_XML + "\n"]) == [0.0, 0.5]
    assert reward("gsm8k_soft_format", [loose, "<answer>1</answer>"]) == [0.5, 0.0]
    counts = reward("gsm8k_xml_count", [loose, "<answer>1", "none"])
    assert counts == [pytest.approx(0.5 - 0.002), 0.125, 0.0]


def test_built_ins_read_chat_completions() -> None:
    chat = Task(task_id="t", prompt=(Message(role="user", content="Q"),), answer="72", verifier="gsm8k", columns={})
    prompts, completions = shaped(chat, ["<answer>72</answer>", "no"])
    assert prompts[0] == [{"role": "user", "content": "Q"}]
    assert completions[0] == [{"role": "assistant", "content": "<answer>72</answer>"}]
    assert [text_of(c) for c in completions] == ["<answer>72</answer>", "no"]
    assert FUNCTIONS["gsm8k_correctness"](prompts=prompts, completions=completions, answer=["72", "72"]) == [
        2.0,
        0.0,
    ]


def test_a_function_without_kwargs_gets_only_what_it_names() -> None:
    assert arguments_for(lambda answer: [], {"answer": [1], "other": [2]}) == {"answer": [1]}
    assert arguments_for(lambda **all_: [], {"answer": [1], "other": [2]}) == {"answer": [1], "other": [2]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RewardConfig(functions={"corectness": 1.0}), "nearest: correctness"),
        (RewardConfig(functions={}), "reward.functions is empty"),
        (RewardConfig(functions={"correctness": float("nan")}), "finite weight"),
        (RewardConfig(functions={"nowhere.py:f": 1.0}), "no file"),
        (RewardConfig(functions={"x.py:": 1.0}), "neither path.py:function"),
        (RewardConfig(verifier="exact"), "reward.verifier=exact"),
        (RewardConfig(options={"length": {"target": 1}}), "not among reward.functions"),
        (RewardConfig(functions={"length": 1.0}, options={"length": 5}), "expected keyword arguments"),
        (RewardConfig(functions={"length": 1.0}, options={"length": {"taget": 1}}), "nearest: target"),
    ],
)
def test_a_wrong_reward_section_is_an_error_that_helps(config: RewardConfig, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        check_rewards(config, tmp_path)


def test_user_files_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(completions): ...")
    config = RewardConfig(functions={"correctness": 1.0, "mine.py:f": 0.5})
    assert check_rewards(config, tmp_path) == {"mine.py:f": tmp_path / "mine.py"}
