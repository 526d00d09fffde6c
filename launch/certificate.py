"""The certificate of `funicular verify loss`: how far the learner's gradient is from a plain one, cut by cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from funicular.actors.gradient_errors import GradientErrors

BOUND = 1e-5
"""Relative error of the whole gradient up to which a float32 cut passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One cut's result."""

    cut: str
    judged: bool
    """False: for information, such as bfloat16; the verdict does not depend on it."""
    seconds: float
    """Loading the model, starting the engine and one step."""
    errors: GradientErrors | None
    """None: the cut could not be computed."""
    failure: str = ""
    """Why not."""
    prompts_shared: bool | None = None
    """Whether prompts were computed once, in a cut that is there for it; None: it is not, or was not computed."""

    @property
    def passes(self) -> bool:
        """Whether the error is within the bound; not where it is NaN."""
        return self.errors is not None and self.errors.relative <= BOUND


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was checked, and what came out."""

    facts: Mapping[str, str]
    """Label to text: recipe, model, tasks, batch, machine, …"""
    rows: Sequence[Row]

    @property
    def verdict(self) -> Literal["PASS", "FAIL"]:
        """PASS: every judged cut is within the bound, and there is one."""
        judged = [row for row in self.rows if row.judged]
        return "PASS" if judged and all(row.passes for row in judged) else "FAIL"

    def text(self) -> str:
        """For the terminal."""
        width = max(map(len, self.facts))
        facts = [f"{label:<{width}}  {text}" for label, text in self.facts.items()]
        return "\n".join([*facts, "", *_table(self.rows), "", self._sentence()])

    def record(self) -> dict[str, Any]:
        """For a JSON file."""
        rows = []
        for row in self.rows:
            record: dict[str, Any] = {"cut": row.cut, "judged": row.judged, "seconds": row.seconds}
            if row.errors is None:
                record["failure"] = row.failure
            else:
                record |= {"relative_error": _number(row.errors.relative), "worst_parameter": row.errors.worst}
                record["parameters"] = {
                    name: {
                        "difference": _number(error.difference),
                        "expected": _number(error.expected),
                        "relative": _number(error.relative),
                    }
                    for name, error in row.errors.parameters.items()
                }
            if row.prompts_shared is not None:
                record["prompts_shared"] = row.prompts_shared
            rows.append(record)
        return {"verdict": self.verdict, "bound": BOUND, **self.facts, "cuts": rows}

    def _sentence(self) -> str:
        judged = [row for row in self.rows if row.judged]
        failed = [row.cut for row in judged if not row.passes]
        if failed:
            return f"FAIL: {len(failed)} of {len(judged)} float32 cuts above {BOUND:g}, or not computed: " + "; ".join(
                failed
            )
        if not judged:
            return "FAIL: no float32 cut was computed"
        largest = max(row.errors.relative for row in judged if row.errors is not None)
        return f"PASS: {len(judged)} float32 cuts, largest error {largest:.1e}, bound {BOUND:g}"


def _table(rows: Sequence[Row]) -> list[str]:
    cells = [["cut", "relative error", "worst parameter", "seconds"]]
    for row in rows:
        if row.errors is None:
            error, worst = "-", f"not computed: {row.failure}"
        else:
            name = row.errors.worst
            error = f"{row.errors.relative:.1e}"
            worst = f"{row.errors.parameters[name].relative:.1e} {name}"
        cells.append([_label(row), error, worst, f"{row.seconds:.0f}"])
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    lines = []
    for cut, error, worst, seconds in cells:
        lines.append(f"{cut:<{widths[0]}}  {error:>{widths[1]}}  {worst:<{widths[2]}}  {seconds:>{widths[3]}}")
    return lines


def _label(row: Row) -> str:
    if row.judged:
        return row.cut
    return f"({row.cut}: not shared by this model)" if row.prompts_shared is False else f"({row.cut})"


def _number(value: float) -> float | None:
    """JSON knows neither NaN nor infinity: null, which no bound allows."""
    return value if math.isfinite(value) else None
