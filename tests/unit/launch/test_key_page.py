"""docs/keys.md is what the schema says."""

from __future__ import annotations

from pathlib import Path

import pytest

from funicular.launch.cli import main
from funicular.launch.schema_docs import keys

PAGE = Path(__file__).parents[3] / "docs" / "keys.md"


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8"), (
        "funicular config keys --markdown > docs/keys.md"
    )


def test_every_key_has_a_row_with_a_meaning() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert len(rows) == len(keys())
    assert not [row for row in rows if row.endswith("|  |")]
