"""`distillation.teacher` to a folder whose model speaks the student's tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from funicular.actors.distillation_config import distils
from funicular.launch.config import Config
from funicular.launch.models import resolve_model

KEY = "distillation.teacher"
_SHOWN = 3


class TeacherError(ValueError):
    """The teacher cannot teach this student."""


def resolve_teacher(config: Config, model_folder: Path, announce: Callable[[str], None]) -> Path | None:
    """The teacher's folder; None: the recipe has no teacher.

    Raises:
        ModelError: nothing usable stands there.
        TeacherError: its tokens are not the student's, or it cannot read as much as the student may write.
    """
    if not distils(config.distillation) or config.distillation.teacher is None:
        return None
    folder = resolve_model(config.distillation.teacher, announce, key=KEY)
    from transformers import AutoTokenizer

    tokenizers = [AutoTokenizer.from_pretrained(str(path), local_files_only=True) for path in (model_folder, folder)]
    student, teacher = (tokenizer.get_vocab() for tokenizer in tokenizers)
    refuse_other_tokens(student, teacher)
    shape = json.loads((folder / "config.json").read_text())
    refuse_smaller_model(
        shape, len(student), config.generator.max_prompt_tokens + config.generator.max_completion_tokens
    )
    ends = [tokenizer.eos_token for tokenizer in tokenizers]
    if ends[0] != ends[1]:
        announce(
            f"the student ends with {ends[0]}, the teacher with {ends[1]}: a teacher that never uses the student's end "
            "token teaches it not to end"
        )
    return folder


def refuse_other_tokens(student: Mapping[str, int], teacher: Mapping[str, int]) -> None:
    """Token ids go to the teacher as they are, so each must mean the same text there.

    Raises:
        TeacherError: names some that do not.
    """
    if student == teacher:
        return
    differing = sorted(
        (token for token in {*student, *teacher} if student.get(token) != teacher.get(token)),
        key=lambda token: (min(student.get(token, len(student)), teacher.get(token, len(teacher))), token),
    )
    shown = "; ".join(
        f"{token!r} is {_id_of(student, token)} for the student, {_id_of(teacher, token)} for the teacher"
        for token in differing[:_SHOWN]
    )
    raise TeacherError(
        f"{KEY}: the teacher has another tokenizer: {len(differing)} of {len({*student, *teacher})} tokens differ "
        f"({shown}). Token ids are handed to the teacher as they are; use a teacher of the student's family"
    )


def refuse_smaller_model(shape: Mapping[str, Any], tokens: int, longest: int) -> None:
    """Refuse a teacher with fewer outputs than tokens, or with fewer positions than a completion may need.

    Args:
        shape: its config.json.
        tokens: of the tokenizer.
        longest: tokens of the longest prompt and completion.

    Raises:
        TeacherError: one of both.
    """
    shape = shape.get("text_config", shape)
    outputs, positions = shape.get("vocab_size"), shape.get("max_position_embeddings")
    if outputs is not None and outputs < tokens:
        raise TeacherError(f"{KEY}: the teacher has {outputs} outputs for the {tokens} tokens of its tokenizer")
    if positions is not None and positions <= longest:
        raise TeacherError(
            f"{KEY}: the teacher reads at most {positions} tokens, fewer than generator.max_prompt_tokens + "
            f"max_completion_tokens + 1 = {longest + 1}"
        )


def _id_of(vocabulary: Mapping[str, int], token: str) -> str:
    return str(vocabulary.get(token, "missing"))
