"""Every mistake in section `reward` is found before a run, and all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from funicular.rewards.config import RewardConfig
from funicular.rewards.config_checks import check_rewards, mistakes

JUDGE = {"base_url": "http://localhost:1/v1", "model": "m"}


def found(folder: Path, **keys: Any) -> dict[str, str]:
    return {mistake.key: str(mistake) for mistake in mistakes(RewardConfig(**keys), folder)}


@pytest.mark.parametrize(
    ("keys", "key", "says"),
    [
        ({"verifier": "exact"}, "reward.verifier", "expected one of"),
        ({"verifier": "exact_nummber"}, "reward.verifier", "Did you mean exact_number?"),
        ({"verifier": "regex", "verifier_options": {"patern": "x"}}, "reward.verifier_options.patern", "pattern"),
        ({"verifier": "code", "verifier_options": {"toleranc": 1}}, "reward.verifier_options.toleranc", "tolerance?"),
        (
            {"verifier": "code", "verifier_options": {"tolerance": "abc"}},
            "reward.verifier_options",
            "tolerance='abc': expected a number, 0 or more",
        ),
        ({"verifier": "code", "verifier_options": {"tolerance": -1}}, "reward.verifier_options", "tolerance=-1"),
        ({"verifier": "code", "verifier_options": {"ignore_case": 1}}, "reward.verifier_options", "true or false"),
        ({"verifier": "code", "verifier_options": {"tests_column": None}}, "reward.verifier_options", "expected text"),
        ({"verifier": "code", "verifier_options": {"language": "pyton"}}, "reward.verifier_options", "python"),
        ({"verifier": "code", "verifier_options": {"format": ["auto"]}}, "reward.verifier_options", "format"),
        ({"verifier_options": {1: 2}}, "reward.verifier_options", "keyword arguments"),
        ({"functions": {}}, "reward.functions", "it is empty"),
        ({"functions": {"correctness": 0.0}}, "reward.functions", "every weight is 0"),
        ({"functions": {"correctness": float("nan")}}, "reward.functions.correctness", "finite weight"),
        ({"functions": {"corectness": 1.0}}, "reward.functions.corectness", "Did you mean correctness?"),
        ({"functions": {"nowhere.py:f": 1.0}}, "reward.functions.nowhere.py:f", "no file"),
        ({"functions": {"mien.py:f": 1.0}}, "reward.functions.mien.py:f", "Did you mean mine.py?"),
        ({"functions": {"x.py:": 1.0}}, "reward.functions.x.py:", "path.py:function"),
        ({"options": {"length": {"target": 1}}}, "reward.options.length", "not in reward.functions"),
        ({"functions": {"length": 1.0}, "options": {"length": 5}}, "reward.options.length", "keyword arguments"),
        (
            {"functions": {"length": 1.0}, "options": {"length": {"taget": 1}}},
            "reward.options.length.taget",
            "Did you mean target?",
        ),
        ({"functions": {"length": 1.0}}, "reward.options.length", "exactly one"),
        ({"uses": {"brief": "length"}}, "reward.uses.brief", "brief is not in reward.functions"),
        ({"functions": {"brief": 1.0}, "uses": {"brief": "lenght"}}, "reward.uses.brief", "Did you mean length?"),
        ({"functions": {"brief": 1.0}, "uses": {"brief": "gone.py:f"}}, "reward.uses.brief", "no file"),
        (
            {"functions": {"brief": 1.0}, "uses": {"brief": "length"}, "options": {"brief": {"taget": 1}}},
            "reward.options.brief.taget",
            "Did you mean target?",
        ),
        ({"functions": {"length": 1.0}, "uses": {"length": "correctness"}}, "reward.uses.length", "built-in function"),
        ({"functions": {"a.b": 1.0}, "uses": {"a.b": "correctness"}}, "reward.uses.a.b", "letters, digits"),
        ({"gates": {"correctness": "format_tags"}}, "reward.gates.correctness", "with weight 0"),
        ({"gates": {"corectness": "correctness"}}, "reward.gates.corectness", "Did you mean correctness?"),
        ({"gates": {"correctness": "correctness"}}, "reward.gates.correctness", "its own gate"),
        ({"network": ["corectness"]}, "reward.network", "Did you mean correctness?"),
        ({"functions": {"llm_judge": 1.0}}, "reward.options.llm_judge", "base_url"),
        (
            {"functions": {"llm_judge": 1.0}, "options": {"llm_judge": {**JUDGE, "scale": [3]}}},
            "reward.options.llm_judge",
            "scale",
        ),
        (
            {"functions": {"llm_judge": 1.0}, "options": {"llm_judge": JUDGE}, "network_time_limit_s": 100.0},
            "reward.options.llm_judge.deadline_s",
            "less than reward.network_time_limit_s, 100",
        ),
    ],
)
def test_a_mistake_names_its_key_and_the_way_out(tmp_path: Path, keys: dict[str, Any], key: str, says: str) -> None:
    (tmp_path / "mine.py").touch()
    problems = found(tmp_path, **keys)
    assert list(problems) == [key]
    assert says in problems[key]


def test_mistakes_come_all_at_once(tmp_path: Path) -> None:
    config = RewardConfig(verifier="x", functions={"length": 1.0, "a.py:f": 1.0}, gates={"length": "b"}, network=["c"])
    with pytest.raises(ValueError, match=r"reward\.verifier='x'") as error:
        check_rewards(config, tmp_path)
    keys = ("reward.functions.a.py:f", "reward.options.length", "reward.gates.length", "reward.network")
    assert all(key in str(error.value) for key in keys)


def test_user_files_are_found_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("raise SystemExit")
    config = RewardConfig(
        functions={"correctness": 1.0, "mine.py:f": 0.5, "again": 1.0, "brief": 1.0},
        uses={"again": "mine.py:g", "brief": "length"},
        options={"brief": {"max": 5}},
        gates={"correctness": "mine.py:f"},
        network=["again"],
    )
    assert check_rewards(config, tmp_path) == {"mine.py:f": tmp_path / "mine.py", "mine.py:g": tmp_path / "mine.py"}
