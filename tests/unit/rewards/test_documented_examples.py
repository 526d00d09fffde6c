"""The tables of examples in docs/rewards.md give what they say, and its recipes are right."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from funicular.rewards.config import RewardConfig
from funicular.rewards.config_checks import mistakes
from funicular.rewards.functions import FUNCTIONS
from funicular.rewards.types import Task
from funicular.rewards.verifiers import SANDBOXED, VERIFIERS

PAGE = (Path(__file__).parents[3] / "docs" / "rewards.md").read_text(encoding="utf-8")
WITHOUT_A_TABLE = {"llm_judge", "reasoning_gym", "reasoning_gym_score"}
"""They need an endpoint, or an extra."""


def rows(header: str) -> list[list[str]]:
    """The cells of the table with this header; a cell in backticks without them, and with real new lines."""
    lines = PAGE[PAGE.index(header) :].partition("\n\n")[0].splitlines()[2:]
    return [[_cell(cell) for cell in line.split("|")[1:-1]] for line in lines]


def _cell(cell: str) -> str:
    stripped = cell.strip()
    return stripped[1:-1].replace("⏎", "\n") if stripped.startswith("`") else stripped


VERIFIED = rows("| recipe | reference | text | correct |")
REWARDED = rows("| recipe | task | text | gives |")
RECIPES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]


@pytest.mark.parametrize(("recipe", "reference", "text", "correct"), VERIFIED)
def test_a_documented_verdict_is_given(recipe: str, reference: str, text: str, correct: str) -> None:
    section = yaml.safe_load(recipe)
    task = Task(task_id="t", prompt="p", answer=reference, verifier=section["verifier"])
    options = section.get("verifier_options", {})
    assert VERIFIERS[task.verifier](task, text, **options).correct is {"yes": True, "no": False}[correct]


@pytest.mark.parametrize(("recipe", "given", "text", "value"), REWARDED)
def test_a_documented_reward_is_given(recipe: str, given: str, text: str, value: str) -> None:
    [(name, options)] = yaml.safe_load(recipe).items()
    columns: dict[str, Any] = {key: [one] for key, one in yaml.safe_load(given or "{}").items()}
    tokens = columns.pop("tokens", [1])[0]
    handed = {"prompts": ["p"], "completions": [text], "completion_ids": [[0] * tokens], **columns}
    assert FUNCTIONS[name](**handed, **options) == [pytest.approx(float(value))]


def test_every_verifier_and_function_is_documented_with_an_example() -> None:
    assert {yaml.safe_load(row[0])["verifier"] for row in VERIFIED} == set(VERIFIERS) - WITHOUT_A_TABLE
    assert {next(iter(yaml.safe_load(row[0]))) for row in REWARDED} == set(FUNCTIONS) - WITHOUT_A_TABLE
    for name in {*VERIFIERS, *FUNCTIONS, *SANDBOXED}:
        assert f"| `{name}` | " in PAGE


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: ",".join(recipe["reward"]["functions"]))
def test_a_documented_recipe_has_no_mistake(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def short_sentences(completions, **columns): ...")
    assert list(mistakes(RewardConfig(**recipe["reward"]), tmp_path)) == []
