"""Images in rows: every form becomes the same task, and what cannot be read is named before anything starts."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.config import DataConfig
from funicular.launch.datasets import DataError
from funicular.launch.tasks import TaskSet, load_tasks
from funicular.rewards.messages import shaped
from funicular.rewards.types import Task
from tests.tiny_vision import picture_bytes

RED, BLUE = picture_bytes(40, 30, seed=1), picture_bytes(30, 60, seed=2)
TEXT = "How many colours?"


def load(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> TaskSet:
    folder.joinpath("images").mkdir(exist_ok=True)
    folder.joinpath("images/red.png").write_bytes(RED)
    folder.joinpath("images/blue.png").write_bytes(BLUE)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(path=str(file), **{"held_out_fraction": 0.0, "images_column": "images", **keys})
    return load_tasks(config, "exact_number", seed=0)


def task_of(folder: Path, row: dict[str, Any], **keys: Any) -> Task:
    return load(folder, [{"answer": "3", **row}], **keys).train[0]


def bytes_of(task: Task) -> list[bytes]:
    return [i.source if isinstance(i.source, bytes) else Path(i.source).read_bytes() for i in task.images]


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


IMAGE, QUESTION = {"type": "image"}, {"type": "text", "text": TEXT}


@pytest.mark.parametrize(
    "value",
    ["images/red.png", "file://images/red.png", data_uri(RED), {"bytes": None, "path": "images/red.png"}],
    ids=["path", "file URI", "data URI", "as datasets stores a path"],
)
def test_a_column_may_hold_an_image_in_any_form(tmp_path: Path, value: Any) -> None:
    task = task_of(tmp_path, {"prompt": TEXT, "images": value})
    assert bytes_of(task) == [RED]
    (message,) = task.prompt
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert task.columns == {}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "images/red.png"},
        {"type": "image", "path": "images/red.png"},
        {"type": "image", "base64": base64.b64encode(RED).decode()},
        {"type": "image_url", "image_url": {"url": data_uri(RED)}},
    ],
)
def test_a_message_may_say_what_its_image_is(tmp_path: Path, part: dict[str, Any]) -> None:
    task = task_of(tmp_path, {"prompt": user(QUESTION, part)}, images_column=None)
    assert bytes_of(task) == [RED]
    assert [part["type"] for part in task.prompt[0]["content"]] == ["text", "image"]


def test_parquet_rows_hold_bytes_as_datasets_writes_them(tmp_path: Path) -> None:
    import datasets

    rows = {
        "prompt": [TEXT],
        "answer": ["3"],
        "images": [[{"bytes": RED, "path": "r.png"}, {"bytes": BLUE, "path": None}]],
    }
    text, images = datasets.Value("string"), datasets.List(datasets.Image())
    features = datasets.Features({"prompt": text, "answer": text, "images": images})
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train.parquet")
    for path in (tmp_path / "data" / "train.parquet", tmp_path / "data"):
        config = DataConfig(path=str(path), images_column="images", held_out_fraction=0.0)
        assert bytes_of(load_tasks(config, "exact_number", seed=0).train[0]) == [RED, BLUE]


def test_images_of_a_column_fill_the_places_of_the_messages_in_order(tmp_path: Path) -> None:
    prompt = [*user(IMAGE, QUESTION, IMAGE)]
    task = task_of(tmp_path, {"prompt": prompt, "images": ["images/red.png", "images/blue.png"]})
    assert bytes_of(task) == [RED, BLUE]
    assert [part["type"] for part in task.prompt[0]["content"]] == ["image", "text", "image"]
    assert [image.name for image in task.images] == ["red.png", "blue.png"]


def test_tasks_with_and_without_images_may_be_mixed(tmp_path: Path) -> None:
    tasks = load(
        tmp_path,
        [
            {"prompt": TEXT, "images": "images/red.png", "answer": "3"},
            {"prompt": "What is 1 + 2?", "images": None, "answer": "3"},
            {"prompt": "What is 1 + 3?", "images": [], "answer": "4"},
        ],
    ).train
    assert [len(task.images) for task in tasks] == [1, 0, 0]
    assert tasks[1].prompt == ({"role": "user", "content": "What is 1 + 2?"},)


def test_the_same_question_about_another_image_is_another_task(tmp_path: Path) -> None:
    rows = [{"prompt": TEXT, "images": f"images/{name}.png", "answer": "3"} for name in ("red", "blue", "red")]
    tasks = load(tmp_path, rows)
    assert len(tasks.train) == 2
    assert len({task.task_id for task in tasks.train}) == 2
    assert tasks.report.duplicates_removed == 1


def test_held_out_tasks_are_given_away_by_the_same_image_only(tmp_path: Path) -> None:
    long = " ".join(f"word{n}" for n in range(20))
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"prompt": f"{long} a", "images": data_uri(image), "answer": "3"} for image in (RED, BLUE)]
    held_out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = [{"prompt": f"{long} b", "images": data_uri(RED), "answer": "3"}]
    tasks = load(tmp_path, train, held_out_path=str(held_out))
    assert [bytes_of(task) for task in tasks.held_out] == [[BLUE]]
    assert len(tasks.report.contaminated) == 1


def test_reward_functions_see_where_images_stand_and_their_names(tmp_path: Path) -> None:
    task = task_of(tmp_path, {"prompt": TEXT, "images": "images/red.png"})
    prompts, _ = shaped(task, ["3"])
    assert prompts == [user({"type": "image", "name": "red.png"}, QUESTION)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": TEXT, "images": "images/green.png"},
            r"data\.images_column=images: .*row 1 image 1 is images/green",
        ),
        ({"prompt": TEXT, "images": "rows.jsonl"}, r"row 1 image 1: .*rows\.jsonl cannot be read as an image"),
        ({"prompt": TEXT, "images": data_uri(RED[:60])}, r"row 1 image 1: cannot be read as an image"),
        ({"prompt": TEXT, "images": "data:image/png;base64,?"}, r"row 1 image 1 is not base64"),
        ({"prompt": TEXT, "images": "https://example.org/a.png"}, r"nothing is fetched from the web"),
        ({"prompt": TEXT, "images": 7}, r"image 1 is 7; expected a path beside the data file"),
        ({"prompt": user(IMAGE, QUESTION), "images": []}, r"row 1 image 1: .*none left"),
        ({"prompt": user(IMAGE, QUESTION), "images": ["images/red.png"] * 2}, r"1 images more than"),
        ({"prompt": user({"type": "audio"}), "images": []}, r"content is text, or a list of parts"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_row(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(tmp_path, row)


def test_images_need_chat_messages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.images_column needs chat messages"):
        load(tmp_path, [{"prompt": TEXT, "images": [], "answer": "3"}], chat=False)
