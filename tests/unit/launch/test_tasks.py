import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.config import DataConfig
from funicular.launch.datasets import DataError
from funicular.launch.tasks import load_tasks

GSM8K = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"
ROWS = [{"prompt": f"question {n}", "answer": str(n), "level": n % 3} for n in range(200)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def one(tmp_path: Path, row: dict[str, Any], verifier: str = "exact_number", **keys: Any) -> Any:
    path = write(tmp_path / "one.jsonl", [row])
    return load_tasks(DataConfig(path=path, held_out_fraction=0.0, **keys), verifier, 0).train[0]


def test_a_row_becomes_a_chat_task_with_its_other_columns(tmp_path: Path) -> None:
    task = one(tmp_path, {"prompt": "2 + 3?", "answer": 5, "level": 2}, system_prompt="Be brief.")
    assert task.prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 3?"},
    )
    assert (task.answer, task.verifier, task.columns) == ("5", "exact_number", {"level": 2})
    assert len(task.task_id) == 16


def test_template_and_plain_text_keep_braces(tmp_path: Path) -> None:
    task = one(tmp_path, {"prompt": "2{x}", "answer": "5"}, prompt_template="Q: {prompt} \\boxed{}\nA:", chat=False)
    assert task.prompt == "Q: 2{x} \\boxed{}\nA:"


def test_the_template_may_name_other_columns_and_fills_only_its_own_places(tmp_path: Path) -> None:
    row = {
        "prompt": "Write {tests} in {name}",
        "answer": "5",
        "tests": ["assert f(1)", "assert f({prompt})"],
        "name": 3,
    }
    template = "{prompt}|{tests}|{name}|{other}"
    task = one(tmp_path, row, prompt_template=template, template_columns="tests, name", chat=False)
    assert task.prompt == "Write {tests} in {name}|assert f(1)\nassert f({prompt})|3|{other}"
    assert set(task.columns) == {"tests", "name"}


def test_the_verifiers_options_keep_the_columns_that_they_name(tmp_path: Path) -> None:
    row = {"prompt": "Which?", "answer": "B", "options": ["x", "y"]}
    path = write(tmp_path / "one.jsonl", [row])
    config = DataConfig(path=path, held_out_fraction=0.0)
    options = {"choices_column": "options"}
    assert load_tasks(config, "choice", 0, verifier_options=options).train[0].columns == {"options": ["x", "y"]}
    kept = load_tasks(replace(config, id_column="prompt"), "choice", 0, verifier_options={"choices_column": "options"})
    assert set(kept.train[0].columns) == {"options"}
    with pytest.raises(DataError, match=r"row 1: choice: .*no column 'option'"):
        load_tasks(config, "choice", 0, verifier_options={"choices_column": "option"})


def test_the_sample_for_the_health_check_is_stable_and_covers_the_balance_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    tasks = load_tasks(DataConfig(path=path, balance_column="level"), "exact_number", 0)
    sample = tasks.health_tasks(9)
    assert sample == load_tasks(DataConfig(path=path, balance_column="level"), "exact_number", 5).health_tasks(9)
    assert [task.columns["level"] for task in sample] == [0, 1, 2] * 3
    assert tasks.health_tasks(0) == ()


def test_a_list_of_messages_is_used_as_it_is(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert one(tmp_path, {"prompt": messages, "answer": "5"}, system_prompt="other").prompt == tuple(messages)


def test_the_pattern_cuts_the_answer_out(tmp_path: Path) -> None:
    row = {"prompt": "Q", "answer": "so\n#### 1,200 "}
    assert one(tmp_path, row, answer_pattern="#### (.*)").answer == "1,200"


def test_the_id_does_not_depend_on_template_or_pattern(tmp_path: Path) -> None:
    row = {"prompt": "Q", "answer": "#### 5"}
    first = one(tmp_path, row, answer_pattern="#### (.*)")
    other = one(tmp_path, row, answer_pattern="(5)", prompt_template="now: {prompt}", chat=False)
    assert first.task_id == other.task_id
    assert one(tmp_path, row | {"n": 7}, answer_pattern="(5)", id_column="n").task_id == "7"


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        (
            {"question": "Q", "answer": "5"},
            {"prompt_column": "qestion"},
            r"one.jsonl row 1 .*nearest: question",
        ),
        (
            {"prompt": "Q", "answer": "5"},
            {"answer_column": "anser"},
            r"data.answer_column=anser: .*nearest: answer",
        ),
        ({"prompt": "Q", "answer": "5"}, {"id_column": "id"}, "data.id_column=id"),
        (
            {"prompt": "Q", "answer": "five"},
            {"answer_pattern": "#### (.*)"},
            r"'#### \(\.\*\)' does not .*row 1: 'fi",
        ),
        ({"prompt": "Q", "answer": "5"}, {"answer_pattern": "####"}, "expected a group"),
        ({"prompt": "Q", "answer": "5"}, {"answer_pattern": "("}, "data.answer_pattern"),
        ({"prompt": "Q", "answer": "five"}, {}, r"row 1: exact_number: .*not a number"),
        ({"prompt": "Q", "answer": None}, {}, "no reference answer"),
        ({"prompt": "Q", "answer": [5]}, {}, "expected text or a number"),
        ({"prompt": "Q", "answer": "5"}, {"answer_column": None}, "no reference answer"),
        ({"prompt": "", "answer": "5"}, {}, "expected text or a list"),
        ({"prompt": [{"role": "user"}], "answer": "5"}, {}, "expected text or a list"),
        ({"prompt": [{"role": "user", "content": "Q"}], "answer": "5"}, {"chat": False}, "used as it is"),
        ({"prompt": "Q", "answer": "5"}, {"prompt_template": "no place"}, r"expected \{prompt\}"),
        ({"prompt": "Q", "answer": "5"}, {"template_columns": "tests"}, r"data.prompt_template has no \{tests\}"),
        (
            {"prompt": "Q", "answer": "5"},
            {"template_columns": "tests", "prompt_template": "{prompt} {tests}"},
            "data.template_columns=tests: .*no such column",
        ),
        (
            {"prompt": "Q", "answer": "5"},
            {"chat": False, "system_prompt": "S"},
            "data.system_prompt needs chat",
        ),
        ({"prompt": "Q", "answer": "5"}, {"balance_column": "levle"}, "data.balance_column=levle"),
    ],
)
def test_wrong_data_is_an_error_that_names_key_and_row(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        one(tmp_path, row, **keys)


def test_json_parquet_and_jsonl_give_the_same_tasks(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    paths = [write(tmp_path / "a.jsonl", ROWS), str(tmp_path / "a.json"), str(tmp_path / "a.parquet")]
    sets = [load_tasks(DataConfig(path=path), "exact_number", 0) for path in paths]
    assert sets[0] == sets[1] == sets[2]
    assert len(sets[0].train) + len(sets[0].held_out) == 200


def test_a_gzipped_file_gives_the_same_tasks_and_a_cut_one_is_an_error(tmp_path: Path) -> None:
    plain = load_tasks(DataConfig(path=write(tmp_path / "a.jsonl", ROWS)), "exact_number", 0)
    packed = gzip.compress((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "b.jsonl.gz").write_bytes(packed)
    assert load_tasks(DataConfig(path=str(tmp_path / "b.jsonl.gz")), "exact_number", 0) == plain
    (tmp_path / "b.jsonl.gz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"b.jsonl.gz: cannot be read"):
        load_tasks(DataConfig(path=str(tmp_path / "b.jsonl.gz")), "exact_number", 0)


def test_a_folder_is_read_by_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[:20])
    write(folder / "test.jsonl", ROWS[20:25])
    tasks = load_tasks(DataConfig(path=str(folder), held_out_split="test"), "exact_number", 0)
    assert (len(tasks.train), len(tasks.held_out)) == (20, 5)
    with pytest.raises(DataError, match=r"data\.held_out_split"):
        load_tasks(DataConfig(path=str(folder), held_out_split="tset"), "exact_number", 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "Q"}\n{oops\n', r"a.jsonl line 2: not valid JSON"),
        ("a.jsonl", "[1]\n", r"line 1: expected an object, got list"),
        ("a.jsonl", "", "there are no rows"),
        ("a.json", "{}", "expected a list of objects, got dict"),
        ("a.csv", "x", r"expected \.jsonl, \.json, \.parquet"),
    ],
)
def test_an_unreadable_file_is_an_error_that_names_the_place(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_tasks(DataConfig(path=str(tmp_path / name)), "exact_number", 0)


@pytest.mark.parametrize(
    ("path", "message"), [("arithmetics", "nearest: arithmetic"), ("./gone.jsonl", "no such file")]
)
def test_a_path_that_is_nowhere_is_an_error(path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_tasks(DataConfig(path=path), "exact_number", 0)


def test_held_out_tasks_are_chosen_by_id_and_not_by_order_or_seed(tmp_path: Path) -> None:
    first = load_tasks(DataConfig(path=write(tmp_path / "a.jsonl", ROWS), held_out_fraction=0.2), "exact_number", 0)
    other = load_tasks(
        DataConfig(path=write(tmp_path / "b.jsonl", ROWS[::-1][:150]), held_out_fraction=0.2),
        "exact_number",
        9,
    )
    assert 20 <= len(first.held_out) <= 60
    assert {t.task_id for t in other.held_out} <= {t.task_id for t in first.held_out}
    assert not {t.task_id for t in first.train} & {t.task_id for t in first.held_out}


def test_the_same_prompt_counts_once(tmp_path: Path) -> None:
    tasks = load_tasks(DataConfig(path=write(tmp_path / "a.jsonl", ROWS + ROWS[:7])), "exact_number", 0)
    assert tasks.report.duplicates_removed == 7
    assert len(tasks.train) + len(tasks.held_out) == 200


def test_one_id_for_two_prompts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 and .*row 4 have different prompts and the same id '0'"):
        load_tasks(DataConfig(path=write(tmp_path / "a.jsonl", ROWS), id_column="level"), "exact_number", 0)


def held_out(tmp_path: Path, texts: list[str], **keys: Any) -> DataConfig:
    train = [{"prompt": f"Well: {LONG}!", "answer": "1"}, {"prompt": "5 - 3?", "answer": "2"}]
    rows = [{"prompt": text, "answer": "1"} for text in texts]
    return DataConfig(
        path=write(tmp_path / "train.jsonl", train),
        held_out_path=write(tmp_path / "test.jsonl", rows),
        **keys,
    )


def test_overlaps_of_13_words_and_equal_short_texts_are_dropped_and_reported(tmp_path: Path) -> None:
    almost = LONG.replace("thirteen", "fourteen")
    config = held_out(tmp_path, [f"ONE, {LONG} again", "5  -  3?", "5 + 3?", almost])
    tasks = load_tasks(config, "exact_number", 0)
    assert [t.prompt[0]["content"] for t in tasks.held_out] == ["5 + 3?", almost]  # type: ignore[index]
    assert len(tasks.report.contaminated) == 2


def test_contamination_can_be_an_error_or_allowed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 held-out tasks .*test.jsonl row 2"):
        load_tasks(held_out(tmp_path, ["fresh", LONG], contamination="error"), "exact_number", 0)
    tasks = load_tasks(held_out(tmp_path, ["fresh", LONG], contamination="allow"), "exact_number", 0)
    assert (len(tasks.held_out), len(tasks.report.contaminated)) == (2, 1)


def test_losing_every_held_out_task_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all 1 held-out tasks"):
        load_tasks(held_out(tmp_path, [LONG]), "exact_number", 0)


def test_a_long_template_contaminates_nothing(tmp_path: Path) -> None:
    config = DataConfig(path=write(tmp_path / "a.jsonl", ROWS), prompt_template=LONG + " {prompt}")
    assert load_tasks(config, "exact_number", 0).report.contaminated == ()


@pytest.mark.skipif(not GSM8K.is_dir(), reason="the GSM8K files are not there")
def test_three_of_gsm8ks_test_tasks_overlap_with_its_training_set() -> None:
    config = DataConfig(
        path=str(GSM8K / "train.jsonl"),
        held_out_path=str(GSM8K / "test.jsonl"),
        prompt_column="question",
        answer_pattern="#### (.*)",
    )
    tasks = load_tasks(config, "gsm8k", 0)
    assert (len(tasks.train), len(tasks.held_out), len(tasks.report.contaminated)) == (7473, 1316, 3)
    assert tasks.train[0].answer == "72"


def test_loading_a_jsonl_file_imports_nothing_heavy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    code = (
        "import sys; from funicular.launch.config import DataConfig;"
        "from funicular.launch.tasks import load_tasks;"
        f"load_tasks(DataConfig(path={path!r}), 'exact_number', 0);"
        "sys.exit(str({'datasets', 'pyarrow', 'numpy', 'torch', 'ray'} & set(sys.modules) or '') or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_hub_that_is_not_reached_is_answered_with_the_way_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*words: Any, **named: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(DataError, match=r"data\.path=owner/name .*Couldn't reach.* data\.path=FILE\.jsonl"):
        load_tasks(DataConfig(path="owner/name"), "exact_number", 0)


def test_a_folder_of_plain_files_has_no_subsets_and_the_message_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "1 + 1?", "answer": "2"}\n')
    fix = (
        rf"BuilderConfig 'main' not found.* data\.subset=null, or data\.path={tmp_path}/FILE, FILE one of train\.jsonl"
    )
    with pytest.raises(DataError, match=fix):
        load_tasks(DataConfig(path=str(tmp_path), subset="main"), "exact_number", 0)
