"""What a row may say of the form of completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.config import DataConfig
from funicular.launch.datasets import DataError
from funicular.launch.structured_output import structured_output
from funicular.launch.tasks import load_tasks


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        ("", None),
        ({}, None),
        ({"regex": "[0-9]+"}, {"regex": "[0-9]+"}),
        ('{"choice": ["yes", "no"]}', {"choice": ["yes", "no"]}),
        ({"json_schema": '{"type": "object"}'}, {"json_schema": {"type": "object"}}),
        ({"json_schema": None, "regex": None, "choice": None, "grammar": 'root ::= "a"'}, {"grammar": 'root ::= "a"'}),
    ],
)
def test_one_kind_or_none_as_a_map_or_its_json(value: Any, form: Any) -> None:
    assert structured_output(value) == form


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[0-9]+", "not JSON"),
        (["yes"], "expected a map with one of"),
        ({"regexp": "a"}, "Did you mean regex?"),
        ({"regex": "a", "choice": ["b"]}, "names regex, choice"),
        ({"regex": ""}, "regex: expected text"),
        ({"choice": "yes"}, "choice: expected a list"),
        ({"json_schema": "[1]"}, "json_schema: expected a map"),
    ],
)
def test_what_is_no_form_is_refused(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("?", r"\?")):
        structured_output(value)


def test_a_column_binds_the_form_of_its_task_and_a_missing_or_wrong_one_names_row_and_key(tmp_path: Path) -> None:
    def task(**row: Any) -> Any:
        (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "2 + 3?", "answer": "5", **row}) + "\n")
        data = DataConfig(path=str(tmp_path / "one.jsonl"), held_out_fraction=0.0, structured_output_column="form")
        return load_tasks(data, "exact_number", 0).train[0]

    bound = task(form={"regex": "[0-9]"})
    assert (bound.structured_output, bound.columns) == ({"regex": "[0-9]"}, {})
    assert task(form=None).structured_output is None
    with pytest.raises(DataError, match=r"data\.structured_output_column=form: .* no such column"):
        task()
    with pytest.raises(DataError, match=r"data\.structured_output_column=form: .*one\.jsonl.*: regex: expected text"):
        task(form={"regex": 3})
