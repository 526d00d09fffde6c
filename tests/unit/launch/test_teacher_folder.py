"""A teacher is refused before anything is started if its tokens are not the student's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from funicular.actors.config import GeneratorConfig
from funicular.actors.distillation_config import DistillationConfig
from funicular.launch.config import Config
from funicular.launch.teacher_folder import (
    TeacherError,
    refuse_other_tokens,
    refuse_smaller_model,
    resolve_teacher,
)
from tests.tiny import make_tiny_model

STUDENT = {"<eos>": 0, "a": 1, "b": 2}


def test_the_same_tokens_pass() -> None:
    refuse_other_tokens(STUDENT, {"b": 2, "a": 1, "<eos>": 0})


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"<eos>": 0, "a": 2, "b": 1}, "2 of 3 tokens differ ('a' is 1 for the student, 2 for the teacher"),
        ({**STUDENT, "c": 3}, "1 of 4 tokens differ ('c' is missing for the student, 3 for the teacher)"),
        ({"<eos>": 0, "a": 1}, "'b' is 2 for the student, missing for the teacher"),
    ],
)
def test_other_tokens_are_named(teacher: dict[str, int], says: str) -> None:
    with pytest.raises(TeacherError) as caught:
        refuse_other_tokens(STUDENT, teacher)
    assert "distillation.teacher: the teacher has another tokenizer" in str(caught.value)
    assert says in str(caught.value)


def test_outputs_and_positions_must_suffice() -> None:
    refuse_smaller_model({"vocab_size": 400, "max_position_embeddings": 129}, 384, 128)
    refuse_smaller_model({"text_config": {"vocab_size": 400}}, 384, 128)
    with pytest.raises(TeacherError, match="383 outputs for the 384 tokens"):
        refuse_smaller_model({"vocab_size": 383}, 384, 128)
    with pytest.raises(TeacherError, match=r"at most 128 tokens, fewer than .* \+ 1 = 129"):
        refuse_smaller_model({"text_config": {"max_position_embeddings": 128}}, 384, 128)


def test_a_folder_with_the_students_tokenizer_is_taken_and_one_with_another_is_not(tmp_path: Path) -> None:
    student, teacher = (make_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("student", "teacher")))
    config = replace(
        Config(),
        distillation=DistillationConfig(teacher=str(teacher)),
        generator=GeneratorConfig(max_prompt_tokens=64, max_completion_tokens=64),
    )
    said: list[str] = []
    assert resolve_teacher(config, student, said.append) == teacher
    assert said == []
    tokenizer = (teacher / "tokenizer.json").read_text()
    (teacher / "tokenizer.json").write_text(tokenizer.replace('"<|im_end|>"', '"<|im_over|>"'))
    with pytest.raises(TeacherError, match="another tokenizer"):
        resolve_teacher(config, student, said.append)
    assert resolve_teacher(Config(), student, said.append) is None
