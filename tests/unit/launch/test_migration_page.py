"""docs/migration.md names keys that exist, agrees with what a recipe's reader is told, and its recipes are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from funicular.launch.key_names import nearest_key
from funicular.launch.recipe import load_recipe
from funicular.launch.schema_docs import keys

PAGE = (Path(__file__).parents[3] / "docs" / "migration.md").read_text(encoding="utf-8")
ROWS: list[tuple[str, str]] = re.findall(r"^\| (`[^|]*) \| ([^|]*) \| [^|]*\|$", PAGE, re.M)
RECIPES = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize(("theirs", "ours"), [row for row in ROWS if row[1] != "none"])
def test_each_row_names_keys_and_agrees_with_the_hints(theirs: str, ours: str) -> None:
    named = set(re.findall(r"`([^`]+)`", ours))
    assert named
    assert named <= set(keys())
    for name in re.findall(r"`([^`]+)`", theirs):
        assert nearest_key(name) in named, name


@pytest.mark.parametrize("text", RECIPES)
def test_each_recipe_of_the_page_is_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text("defaults: [embedded]\n" + text, encoding="utf-8")
    load_recipe([str(path)], [])


def test_the_page_has_its_tables_and_recipes() -> None:
    assert len(ROWS) > 100
    assert len(RECIPES) == 6
