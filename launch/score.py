"""`funicular score`: a file of completions through a recipe's verifier and reward functions, without a run or Ray."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from funicular.launch.completions_file import Completion, read_completions
from funicular.launch.health import check_health
from funicular.launch.local_scoring import details_text, local_runner
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.token_ids import needs_token_ids, tokenizer_for
from funicular.rewards.types import Status, Verdict

SCORED, NOT_ALL_SCORED, WRONG_INPUT = 0, 1, 2
_SHOWN = 60


def score(loaded: LoadedRecipe, file: Path, output: Path | None) -> int:
    """Print a table of verdicts and their totals.

    Args:
        output: file for the verdicts, one JSON object a line, in the order of the input; None: none is written.

    Returns:
        The exit status: 0; 1 if scoring failed for some completion; 2 for wrong input.
    """
    try:
        completions = read_completions(file, loaded.config)
        verdicts, raised = _verdicts(loaded, completions)
        if output is not None:
            lines = [_line(one, verdict) for one, verdict in zip(completions, verdicts, strict=True)]
            output.write_text("".join(lines), encoding="utf-8")
    except (ValueError, OSError) as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    _print_table(completions, verdicts)
    _print_totals(completions, verdicts)
    for name, error_text in raised.items():
        print(f"error: {name} raised: {error_text}", file=sys.stderr)
    failed = any(verdict.status is Status.INFRA_ERROR for verdict in verdicts)
    return NOT_ALL_SCORED if failed or raised else SCORED


def _verdicts(loaded: LoadedRecipe, completions: Sequence[Completion]) -> tuple[list[Verdict], dict[str, str]]:
    """In the order of the completions, and the last error of each function that raised."""
    config = loaded.config
    token_ids = _token_ids(loaded, completions)
    tasks = list({one.task.task_id: one.task for one in completions}.values())
    if config.reward.health_tasks:
        print(check_health(config, loaded.folder, tasks[: config.reward.health_tasks]), file=sys.stderr)
    groups: dict[tuple[str, str], list[int]] = {}
    for index, one in enumerate(completions):
        groups.setdefault(one.group, []).append(index)
    verdicts: dict[int, Verdict] = {}
    raised: dict[str, str] = {}
    with local_runner(config, loaded.folder) as runner:
        for indexes in groups.values():
            texts = [completions[i].text for i in indexes]
            found, errors = runner.score(completions[indexes[0]].task, texts, [token_ids[i] for i in indexes])
            verdicts |= zip(indexes, found, strict=True)
            raised |= errors
    return [verdicts[index] for index in range(len(completions))], raised


def _token_ids(loaded: LoadedRecipe, completions: Sequence[Completion]) -> list[Any]:
    """Of each completion: the row's own, else the text's by the model's tokenizer. Where no function asks for them it
    is None and not a list, so that one which does all the same raises and counts nothing."""
    if not needs_token_ids(loaded.config.reward, loaded.folder):
        return [one.token_ids for one in completions]
    if all(one.token_ids is not None for one in completions):
        return [one.token_ids for one in completions]
    tokenize = tokenizer_for(loaded.config.model.path)
    return [tokenize(one.text) if one.token_ids is None else one.token_ids for one in completions]


def _line(one: Completion, verdict: Verdict) -> str:
    record: dict[str, Any] = {
        "line": one.line,
        "task_id": one.task.task_id,
        "status": str(verdict.status),
        "reward": verdict.reward,
        "breakdown": dict(verdict.breakdown),
        "details": dict(verdict.details),
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


def _print_table(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
    functions = list(verdicts[0].breakdown)
    rows = [["line", "task_id", "status", "reward", *functions, "details"]]
    for one, verdict in zip(completions, verdicts, strict=True):
        numbers = [_number(verdict.reward), *(_number(verdict.breakdown[name]) for name in functions)]
        rows.append([str(one.line), one.task.task_id, str(verdict.status), *numbers, _short(details_text(verdict))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[-1]]))


def _print_totals(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
    groups = len({one.group for one in completions})
    print(f"\n{len(verdicts)} completions of {groups} groups")
    statuses = Counter(str(verdict.status) for verdict in verdicts)
    print("status  " + ", ".join(f"{name} {count}" for name, count in statuses.most_common()))
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    void = f"; {len(verdicts) - len(rewards)} void" if len(rewards) < len(verdicts) else ""
    print(f"reward  mean {_mean(rewards)}{void}")
    for name in verdicts[0].breakdown:
        values = [verdict.breakdown[name] for verdict in verdicts]
        given = [value for value in values if value is not None]
        print(f"  {name}  mean {_mean(given)} of {len(given)}")


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" if values else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _short(text: str) -> str:
    shown = repr(text)[1:-1]
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
