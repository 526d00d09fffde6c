"""`funicular score`: rows find their tasks, verdicts are printed and written, wrong input is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.cli import main

TASKS = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n), "id": f"t{n}"} for n in range(1, 40)]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUNICULAR_CACHE", str(tmp_path / "cache"))
    jsonl("tasks.jsonl", TASKS)
    Path("own.yaml").write_text("data: {path: tasks.jsonl, id_column: id}\n")


def jsonl(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def score(rows: list[dict[str, Any]], *words: str) -> int:
    return main(["score", "-c", "own.yaml", jsonl("completions.jsonl", rows), *words])


def verdicts(rows: list[dict[str, Any]], *words: str) -> list[dict[str, Any]]:
    assert score(rows, "--output", "verdicts.jsonl", *words) == 0
    return [json.loads(line) for line in Path("verdicts.jsonl").read_text().splitlines()]


def test_verdicts_come_in_the_order_of_the_file_with_a_table_and_totals(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"task_id": "t3", "completion": "It is 6."},
        {"task_id": "t4", "completion": "It is 9."},
        {"task_id": "t3", "completion": "7"},
    ]
    found = verdicts(rows, "reward.functions.closeness=0.5")
    assert [(v["line"], v["task_id"], v["status"]) for v in found] == [
        (1, "t3", "passed"),
        (2, "t4", "failed"),
        (3, "t3", "failed"),
    ]
    assert [v["reward"] for v in found] == pytest.approx([1.5, 0.5 * 7 / 8, 0.5 * 5 / 6])
    assert found[1]["breakdown"] == {"correctness": 0.0, "closeness": 0.875}
    assert found[1]["details"] == {"extracted": "9"}
    printed = capsys.readouterr()
    table = printed.out.splitlines()
    assert table[0].split() == ["line", "task_id", "status", "reward", "correctness", "closeness", "details"]
    assert table[2].split()[:3] == ["2", "t4", "failed"]
    assert "3 completions of 2 groups" in printed.out
    assert "status  failed 2, passed 1" in printed.out
    assert "correctness  mean 0.3333 of 3" in printed.out
    assert "the verifier is well: 2 reference answers pass" in printed.err


def test_rows_find_their_task_by_id_by_their_own_columns_or_by_the_prompt() -> None:
    rows = [
        {"task_id": "t5", "completion": "10"},
        {"prompt": "What is 1 + 1?", "answer": "2", "id": "mine", "completion": "2"},
        {"prompt": "What is 7 + 7?", "completion": "14"},
        {"task_id": "t6", "completion": [{"role": "assistant", "content": "1"}, {"role": "assistant", "content": "2"}]},
    ]
    found = verdicts(rows, "data.prompt_template=Please: {prompt}")
    assert [(v["task_id"], v["status"]) for v in found] == [(name, "passed") for name in ("t5", "mine", "t7", "t6")]


def test_rows_with_their_own_columns_need_no_data_of_the_recipe() -> None:
    Path("tasks.jsonl").write_text("not read\n")
    row = {"prompt": "What is 1 + 1?", "answer": "2", "id": "mine", "completion": "2"}
    assert [v["status"] for v in verdicts([row])] == ["passed"]


def test_a_group_is_scored_together_and_group_id_parts_it() -> None:
    Path("mine.py").write_text("def of_group(completions, **_):\n    return [len(completions)] * len(completions)\n")
    rows = [{"task_id": "t1", "completion": str(n)} for n in range(3)]
    only = "reward.functions={mine.py:of_group: 1}"
    assert [v["reward"] for v in verdicts(rows, only)] == [3, 3, 3]
    parted = [row | {"group_id": group} for row, group in zip(rows, ("g1", "g2", "g1"), strict=True)]
    assert [v["reward"] for v in verdicts(parted, only)] == [2, 1, 2]


def test_held_out_tasks_that_training_gives_away_are_found_too() -> None:
    Path("own.yaml").write_text("data: {path: tasks.jsonl, held_out_path: test.jsonl, id_column: id}\n")
    jsonl("test.jsonl", [TASKS[0] | {"id": "again"}])
    assert verdicts([{"task_id": "again", "completion": "2"}])[0]["status"] == "passed"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"task_id": "t3"}, "completions.jsonl line 2: no completion"),
        ({"task_id": "t3", "completions": "6"}, "nearest: completions"),
        ({"task_id": "t333", "completion": "6"}, "line 2: task_id=t333: .*no such task; nearest: t33"),
        ({"completion": "6"}, "line 2: no task_id; expected one, or a row of the data with answer, id, prompt"),
        ({"prompt": "What?", "completion": "6"}, "no task with this prompt: 'What\\?'"),
        ({"task_id": "t3", "completion": 6}, "line 2: completion=6; expected text, or a list"),
        ({"task_id": "t3", "completion": [{"role": "user", "content": "6"}]}, "list of assistant messages"),
        ({"task_id": "t3", "completion": "6", "completion_ids": [1.5]}, "line 2: completion_ids="),
        ({"prompt": "p", "answer": "six", "id": "m", "completion": "6"}, "line 2: exact_number: .*not a number"),
        ({"prompt": "p", "answer": "6", "id": "t3", "completion": "6"}, "lines 1 and 2: the same task_id t3"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(
    row: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score([{"task_id": "t3", "completion": "6"}, row]) == 2
    printed = capsys.readouterr()
    assert re.search(message, printed.err), printed.err
    assert printed.out == ""


def test_a_line_that_is_no_json_and_a_file_that_is_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.jsonl").write_text('{"task_id": "t3", "completion": "6"}\n{oops\n')
    assert main(["score", "-c", "own.yaml", "broken.jsonl"]) == 2
    assert "broken.jsonl line 2: not valid JSON" in capsys.readouterr().err
    assert main(["score", "-c", "own.yaml", "gone.jsonl"]) == 2
    assert "gone.jsonl: no such file" in capsys.readouterr().err
    assert main(["score", "-c", "own.yaml", "seed=3"]) == 2
    assert "expected one file of completions, got none" in capsys.readouterr().err
    assert main(["score", "-c", "own.yaml", "a.jsonl", "b.jsonl"]) == 2
    assert "got a.jsonl b.jsonl" in capsys.readouterr().err


def test_lengths_are_counted_in_the_rows_own_tokens_and_never_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    counted = ["reward.functions={length: 1}", "reward.options.length.max=2"]
    row = {"task_id": "t3", "completion": "It is 6"}
    assert [v["reward"] for v in verdicts([row | {"completion_ids": [5, 6, 7]}], *counted)] == [0.5]
    assert score([row], *counted) == 2
    assert "this model's tokenizer is not on this machine; give each row its completion_ids" in capsys.readouterr().err


def test_a_users_function_that_looks_at_token_ids_gets_them_or_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("def tokens(completion_ids, **_):\n    return [len(ids) for ids in completion_ids]\n")
    row = {"task_id": "t3", "completion": "It is 6"}
    only = "reward.functions={mine.py:tokens: 1}"
    assert [v["reward"] for v in verdicts([row | {"completion_ids": [5, 6, 7]}], only)] == [3]
    assert score([row], only) == 2
    assert "completion_ids" in capsys.readouterr().err


def test_a_tokenizer_that_is_here_counts(tmp_path: Path) -> None:
    from tests.tiny import make_tiny_model

    counted = ["reward.functions={length: 1}", "reward.options.length.max=1", f"model.path={make_tiny_model(tmp_path)}"]
    assert verdicts([{"task_id": "t3", "completion": "6 6 6 6 6 6 6 6"}], *counted)[0]["reward"] < 1.0


def test_a_function_that_raises_ends_with_status_1_and_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("def broken(completions, **_):\n    raise RuntimeError('no such word')\n")
    assert score([{"task_id": "t3", "completion": "6"}], "reward.functions={mine.py:broken: 1}") == 1
    printed = capsys.readouterr()
    assert "mine.py:broken raised: RuntimeError: no such word" in printed.err
    assert "reward  mean -; 1 void" in printed.out


def test_a_verifier_that_is_not_well_stops_before_scoring(capsys: pytest.CaptureFixture[str]) -> None:
    needles = ["reward.verifier=needle", "reward.verifier_options={max_words: 1}"]
    row = {"prompt": "p", "answer": "two words", "id": "m", "completion": "x"}
    assert score([row], *needles) == 2
    printed = capsys.readouterr()
    assert "task m: the reference answer, as 'two words', gave failed" in printed.err
    assert printed.out == ""
    assert score([row], *needles, "reward.health_tasks=0") == 0
