"""Whether a model can be trained on tasks with images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from funicular.actors.distillation_config import teacher_in_ranks, teacher_scores_samples
from funicular.actors.images import VISION_MODELS, is_vision_model
from funicular.launch.config import Config
from funicular.rewards.types import Task


def refuse_unfit_for_images(config: Config, tasks: Iterable[Task], model_folder: Path) -> None:
    """Look at what only the tasks and the model's folder say together.

    Raises:
        ValueError: tasks have images, and the model or the recipe has no use for them.
    """
    count = sum(bool(task.images) for task in tasks)
    if not count:
        return
    if not is_vision_model(model_folder):
        raise ValueError(
            f"model.path={config.model.path}: {count} tasks have images, and this model reads none; expected a model "
            f"whose config.json says model_type {' or '.join(VISION_MODELS)} (Qwen2.5-VL)"
        )
    if config.model.chat_template == "plain":
        raise ValueError(
            f"model.chat_template=plain: {count} tasks have images, and this template has no place for them; set auto, "
            "or name a Jinja file that writes the model's placeholder for each part of type image"
        )
    if config.generator.cache_in_flight == "keep" and not config.learner.freeze_vision:
        raise ValueError(
            "generator.cache_in_flight=keep: engines would keep what earlier weights of the vision tower made of "
            "images; set recompute, or learner.freeze_vision=true"
        )
    if teacher_scores_samples(config.distillation) or teacher_in_ranks(config.distillation):
        raise ValueError(
            f"distillation.teacher={config.distillation.teacher}: {count} tasks have images, which teachers are not "
            "shown yet; set it to null"
        )


def refuse_vision_model(config: Config, model_folder: Path) -> None:
    """For commands that know models of text only.

    Raises:
        ValueError: it is a vision-language model.
    """
    if is_vision_model(model_folder):
        raise ValueError(
            f"model.path={config.model.path}: the certificate's plain model reads text only, and this is a "
            "vision-language model; the tests compare its gradient (tests/integration/test_learner_vision.py)"
        )
