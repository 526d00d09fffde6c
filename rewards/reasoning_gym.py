"""reasoning-gym's own scoring of its tasks: a verifier, and a graded reward function. Needs the extra `reasoning`."""

from __future__ import annotations

from functools import cache
from typing import Any

from funicular.rewards.tags import within
from funicular.rewards.types import Task
from funicular.rewards.verification import Verification

INSTALL = "pip install 'funicular[reasoning]'"


def reasoning_gym(task: Task, text: str, *, tag: str | None = "answer") -> Verification:
    """Correct if reasoning-gym gives the answer its full score, 1.0. Its score is in `details`.

    Example: `Two dogs: <answer>8</answer>` for a task of `leg_counting` whose answer is 8.

    Args:
        task: made by `data.path: reasoning-gym`; its column `entry` is reasoning-gym's own record.
        tag: the answer stands in the last <tag>...</tag>; a text without it is not correct. None: it is the whole text.

    Raises:
        ValueError: the task was not made by reasoning-gym, or the package is missing.
    """
    entry = task.columns.get("entry")
    if not isinstance(entry, dict) or "source_dataset" not in entry.get("metadata", {}):
        raise ValueError("reasoning_gym: the task has no column entry; expected tasks of data.path=reasoning-gym")
    answer = within(text, tag).strip()
    if not answer:
        return Verification(correct=False, details={"extracted": "nothing", "score": "0.0"})
    details = {"extracted": answer[:200]}
    try:
        score = float(_score_function(entry["metadata"]["source_dataset"])(answer, entry))
    except Exception as error:  # its parsers meet a text that nobody foresaw: the policy's doing, and no fault of ours
        return Verification(correct=False, details=details | {"score": "0.0", "raised": repr(error)[:200]})
    return Verification(correct=score >= 1.0, details=details | {"score": f"{score:.4f}"})


def reasoning_gym_score(details: list[dict[str, str]], **_: Any) -> list[float | None]:
    """reasoning-gym's own score, 0 to 1: partly right answers of some of its datasets get a part.

    A completion that the verifier did not answer for in time gets 0.
    """
    # What ran into a limit has `verifier`, a sentence of the runner's, and nothing from the verifier itself.
    if any(not {"score", "verifier"} & of_one.keys() for of_one in details):
        raise ValueError("reasoning_gym_score: expected reward.verifier=reasoning_gym, which gives the score")
    return [float(of_one.get("score", 0.0)) for of_one in details]


def prepare() -> None:
    """Import the package, which takes seconds.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    load()


def load() -> Any:
    """The package.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    try:
        import reasoning_gym as package
    except ImportError as error:
        raise ValueError(f"reasoning-gym is not installed ({error}); it is an extra: {INSTALL}") from None
    return package


@cache
def _score_function(dataset: str) -> Any:
    return load().get_score_answer_fn(dataset)
