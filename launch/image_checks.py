"""Whether a model can be trained on tasks with images."""

from __future__ import annotations

from collections.abc import Iterable

from funicular.rewards.types import Task


def refuse_images(tasks: Iterable[Task]) -> None:
    """Raise for tasks with images, which are read and checked, and which no model is shown yet.

    Raises:
        ValueError: there are some.
    """
    count = sum(bool(task.images) for task in tasks)
    if count:
        raise ValueError(f"data.path: {count} tasks have images, and models that read them cannot be trained yet")
