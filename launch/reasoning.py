"""Tasks of the optional package reasoning-gym: puzzles and sums made by rule, each scored by its own function."""

from __future__ import annotations

from itertools import chain, islice, zip_longest
from typing import Any

from funicular.rewards.nearest import known_names
from funicular.rewards.reasoning_gym import load

DEFAULT_KINDS = "leg_counting,chain_sum"


def reasoning_rows(kinds: str | None, size: int, seed: int) -> list[dict[str, Any]]:
    """Rows with columns prompt, answer, kind and entry (reasoning-gym's own record, which its scoring needs).

    Kinds take turns. The same package, seed and kinds give the same rows. Where many answers are right, reasoning-gym
    has no reference, and `answer` is None.

    Args:
        kinds: names of reasoning-gym's datasets, separated by commas; None: DEFAULT_KINDS.
        size: rows.

    Raises:
        ValueError: the package is missing, or a kind is unknown, repeated or cannot be made without settings.
    """
    gym = load()
    names = [name.strip() for name in (kinds or DEFAULT_KINDS).split(",")]
    if len(set(names)) != len(names):
        raise ValueError(f"data.kinds={kinds}: a kind stands there twice; expected each once")
    share = -(-size // len(names))
    turns = zip_longest(*(_of_kind(gym, name, share, seed) for name in names))
    return list(islice((row for row in chain.from_iterable(turns) if row is not None), size))


def _of_kind(gym: Any, name: str, size: int, seed: int) -> list[dict[str, Any]]:
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise ValueError(f"data.kinds: reasoning-gym has no dataset {name!r}; {known_names(name, DATASETS)}")
    try:
        entries = list(gym.create_dataset(name, size=size, seed=seed))
    except AssertionError as error:  # `composite` asks for settings that a recipe cannot give
        raise ValueError(f"data.kinds: reasoning-gym cannot make {name} by its defaults: {error}") from None
    return [
        {"prompt": entry["question"], "answer": entry["answer"], "kind": name, "entry": dict(entry)}
        for entry in entries
    ]
