"""docs/recipes.md, faq.md and security.md name keys, metrics, recipes, commands and tests that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from funicular.launch.recipe import load_recipe
from funicular.launch.recipe_files import packaged_recipes
from funicular.launch.schema_docs import keys, sections

ROOT = Path(__file__).parents[3]
GUIDES = ("recipes.md", "faq.md", "security.md")
TEXTS = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in GUIDES}
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```yaml\n# (\w+\.yaml)\n(.*?)```", TEXTS["recipes.md"], re.S)


def quoted(text: str) -> list[str]:
    """What stands in backticks within lines."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))


@pytest.mark.parametrize("name", GUIDES)
def test_keys_that_a_guide_names_exist(name: str) -> None:
    for words in quoted(TEXTS[name]):
        for section, key in re.findall(r"(?<![\w/.])([a-z_]+)\.([a-z_0-9]+)(?![\w/.])", words):
            if section in sections() and not key.endswith(("py", "md", "yaml", "jsonl")):
                assert f"{section}.{key}" in keys(), words


@pytest.mark.parametrize("name", GUIDES)
def test_values_that_a_guide_sets_are_valid(name: str) -> None:
    """Each `key=value` alone, on a recipe that allows it; names in capitals stand for a value of the user's."""
    beside = {
        "learner.sequence_parallel": ["learner.ranks=2"],
        "learner.zero_stage": ["learner.ranks=2"],
        "learner.offload_optimizer": ["learner.zero_stage=1"],
        "weight_sync.lora": ["learner.lora_rank=16"],
        "checkpoint.keep_best": ["evaluation.every=8"],
        "learner.quantization": None,  # needs bitsandbytes
        "distillation.loss": None,  # hard needs given completions, other losses a teacher
    }
    for words in quoted(TEXTS[name]):
        if re.fullmatch(r"[a-z_]+\.[a-z_]+=[^A-Z ]+", words):
            more = beside.get(words.partition("=")[0], [])
            if more is not None:
                load_recipe(["embedded"], [words, *more])


@pytest.mark.parametrize("name", GUIDES)
def test_metrics_that_a_guide_names_exist(name: str) -> None:
    groups = set(re.findall(r"^\| `([a-z]+)/", METRICS, re.M)) - {"system"}
    documented = set(re.findall(r"`([a-z]+/[\w/]+)`", METRICS))
    for words in quoted(TEXTS[name]):
        if re.fullmatch(r"[a-z]+/\w+(/\w+)?", words) and words.partition("/")[0] in groups:
            same = re.sub(
                r"^eval/\w+/", "eval/<set>/", re.sub(r"^groups/dropped/\w+", "groups/dropped/<reason>", words)
            )
            assert same in documented or f"`{same}`" in METRICS, words


def test_every_packaged_recipe_is_described() -> None:
    table = TEXTS["recipes.md"].partition("## Packaged recipes")[2].partition("\n## ")[0]
    assert set(packaged_recipes()) <= set(quoted(table))


def test_the_recipes_of_the_page_are_valid_and_raise_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.jsonl").write_text('{"id": "a", "question": "What is 2 + 3?", "answer": "5"}\n')
    for name, text in RECIPES:
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert [name for name, _ in RECIPES] == ["mine.yaml", "eight.yaml"]
    assert load_recipe(["mine.yaml"], []).warnings == ()
    assert load_recipe(["mine.yaml", "eight.yaml"], []).warnings == ()


def test_commands_of_the_page_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    from funicular.launch.cli import main

    commands = [shlex.split(line, comments=True) for line in re.findall(r"^funicular .*$", TEXTS["recipes.md"], re.M)]
    assert len(commands) == 7
    for _, *words in commands:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--help"])
        assert ended.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_tests_that_the_security_page_names_exist() -> None:
    """`file.py::test`, or `::test` of the file named before, with the file's folder or without."""
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    last = ""
    for words in quoted(TEXTS["security.md"]):
        file, _, test = words.partition("::")
        if test or re.fullmatch(r"[\w/]*test_\w+\.py", words):
            last = file.rpartition("/")[2] or last
            assert "/" not in file or files[last] == ROOT / file, words
            assert not test or f"def {test}(" in files[last].read_text(encoding="utf-8"), words
