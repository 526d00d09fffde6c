"""The task sets that are made by rule, by the name that `data.path` gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funicular.launch.arithmetic import arithmetic_rows
from funicular.launch.code_tasks import code_rows
from funicular.launch.config import DataConfig
from funicular.launch.emails import email_rows
from funicular.launch.needle import needle_rows
from funicular.launch.reasoning import reasoning_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSetMaker:
    """How one set is made."""

    rows: Callable[[DataConfig, int], list[dict[str, Any]]]
    """From section `data` and the run's seed."""
    balance_column: str | None
    """Column whose values are drawn in turn unless the recipe says otherwise; None: a plain shuffle."""


def _arithmetic(config: DataConfig, seed: int) -> list[dict[str, Any]]:
    return arithmetic_rows(config.kinds, config.size, seed)


def _code(config: DataConfig, seed: int) -> list[dict[str, Any]]:
    return code_rows(config.kinds, config.size, seed)


def _emails(config: DataConfig, seed: int) -> list[dict[str, Any]]:
    return email_rows(config.size, seed)


def _needle(config: DataConfig, seed: int) -> list[dict[str, Any]]:
    return needle_rows(
        words=config.needle_words,
        depths=config.needle_depths,
        count=config.needle_count,
        distractors=config.needle_distractors,
        size=config.size,
        seed=seed,
    )


def _reasoning(config: DataConfig, seed: int) -> list[dict[str, Any]]:
    return reasoning_rows(config.kinds, config.size, seed)


MADE_BY_RULE: dict[str, TaskSetMaker] = {
    "arithmetic": TaskSetMaker(rows=_arithmetic, balance_column="kind"),
    "code": TaskSetMaker(rows=_code, balance_column="kind"),
    "emails": TaskSetMaker(rows=_emails, balance_column=None),
    "needle": TaskSetMaker(rows=_needle, balance_column="depth"),
    "reasoning-gym": TaskSetMaker(rows=_reasoning, balance_column="kind"),
}
