"""A task's images become what the vision tower reads, and placeholders in the prompt, as in transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from funicular.actors.images import ImageReader, Prompt, image_reader, read_prompt
from funicular.actors.prompts import Prompts, load_tokenizer
from funicular.rewards.types import ImagePart, Message, Task, TaskImage, TextPart
from tests.tiny import make_tiny_model
from tests.tiny_vision import make_tiny_vision_model, picture, picture_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vision_model(tmp_path_factory.mktemp("vision"))


def image(width: int, height: int, seed: int) -> TaskImage:
    return TaskImage(name=f"{seed}.png", source=picture_bytes(width, height, seed))


def task(*images: TaskImage, text: str = "Which is larger?") -> Task:
    parts: list[TextPart | ImagePart] = [ImagePart(type="image", name=one.name) for one in images]
    content = [*parts, TextPart(type="text", text=text)]
    return Task(
        task_id="t", prompt=(Message(role="user", content=content),), images=images, answer=None, verifier="none"
    )


def read(folder: Path, task: Task) -> Prompt:
    prompts = Prompts(load_tokenizer(str(folder)), "auto")
    return read_prompt(image_reader(str(folder)), task, prompts.render(task))


def test_ids_and_pixels_are_those_of_transformers_processor(folder: Path) -> None:
    pytest.importorskip("vllm")
    from funicular.actors.vllm_vision import ImagesOnlyProcessor

    sizes = [(56, 28), (61, 90), (200, 40)]
    prompt = read(folder, task(*(image(*size, seed) for seed, size in enumerate(sizes))))
    processor = ImagesOnlyProcessor.from_pretrained(str(folder))
    text = processor.tokenizer.decode(prompt.short_ids)
    expected = processor(
        images=[picture(*size, seed) for seed, size in enumerate(sizes)], text=[text], return_tensors="np"
    )
    assert prompt.token_ids == expected["input_ids"][0].tolist()
    assert prompt.images is not None
    assert np.array_equal(prompt.images.pixel_values, expected["pixel_values"])
    assert prompt.images.grid_thw.tolist() == expected["image_grid_thw"].tolist()
    assert len(set(map(tuple, prompt.images.grid_thw.tolist()))) == 3
    assert np.array_equal(np.flatnonzero(expected["mm_token_type_ids"][0]), prompt.images.places)


def test_an_image_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "3.png"
    file.write_bytes(picture_bytes(60, 60, 3))
    by_path = read(folder, task(TaskImage(name="3.png", source=str(file)))).images
    by_bytes = read(folder, task(image(60, 60, 3))).images
    assert by_path is not None
    assert by_bytes is not None
    assert np.array_equal(by_path.pixel_values, by_bytes.pixel_values)


def test_a_task_without_images_is_what_the_template_made_of_it(folder: Path) -> None:
    text_only = Task(task_id="t", prompt=(Message(role="user", content="Hi"),), answer=None, verifier="none")
    prompt = read(folder, text_only)
    assert (prompt.images, prompt.short_ids, prompt.pictures) == (None, None, ())
    assert load_tokenizer(str(folder)).decode(prompt.token_ids).endswith("Hi<|im_end|>\n<|im_start|>assistant\n")


def test_a_text_that_spells_the_placeholder_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="1 images, and the rendered prompt has 2 placeholders"):
        read(folder, task(image(28, 28, 0), text="<|image_pad|>"))


def test_an_image_that_ends_early_is_named(folder: Path) -> None:
    torn = TaskImage(name="torn.png", source=picture_bytes(200, 200, 0)[:-40])
    with pytest.raises(ValueError, match=r"torn\.png: cannot be read as an image"):
        read(folder, task(torn))


def test_a_model_of_text_has_no_reader_and_refuses_images(tmp_path: Path) -> None:
    assert image_reader(str(make_tiny_model(tmp_path))) is None
    with pytest.raises(ValueError, match="the model reads none"):
        read_prompt(None, task(image(28, 28, 0)), [1, 2])


def test_a_model_without_an_image_processor_is_refused_with_its_folder(tmp_path: Path) -> None:
    make_tiny_vision_model(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="has no image processor"):
        ImageReader(str(tmp_path))
