"""Adds up the jobs and tests of one submission to its judgement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from funicular.rewards.sandbox.types import (
    CaseResult,
    Integrity,
    JobReport,
    Judgement,
    Level,
    Outcome,
    Signals,
)

_SHOWN_BYTES = 4096
_SHOWN_IN_DETAIL = 100


class Account:
    """What the jobs of one submission used and did.

    Args:
        total: number of its tests.
        level: of the slots that run it.
        slot: name of its first slot.
    """

    def __init__(self, total: int, level: Level, slot: str) -> None:
        self.total = total
        self.passed = 0
        self.cases: list[CaseResult] = []
        self.run: int | None = None
        """Tests that were run, where they have no cases here."""
        self.outcome = Outcome.OK
        """Of the first test that did not pass."""
        self.detail = ""
        self.integrity = Integrity.STRONG
        self.violations = 0
        self.canary_read = False
        self.wall_s = 0.0
        self._level = level
        self._slot = slot
        self._cpu_s = 0.0
        self._peak_rss_mib = 0.0
        self._denied: Counter[str] = Counter()
        self._stdout = self._stderr = b""

    def add_job(self, report: JobReport, canary: str) -> None:
        """Count what a job used, and look for the secret of its slot in what it wrote."""
        self._cpu_s += report.cpu_s
        self.wall_s += report.wall_s
        self._peak_rss_mib = max(self._peak_rss_mib, report.peak_rss_mib)
        self._denied.update(report.denied)
        self._stdout, self._stderr = report.stdout, report.stderr
        self.look_for(canary, (report.stdout, report.stderr))

    def look_for(self, canary: str, written: Iterable[bytes]) -> None:
        """Note if judged code wrote the secret."""
        secret = canary.encode()
        if secret and any(secret in text for text in written):
            self.canary_read = True

    def add_case(self, result: CaseResult, detail: str) -> None:
        """Count a test."""
        self.cases.append(result)
        if result.outcome is Outcome.OK:
            self.passed += 1
        else:
            self.fail(result.outcome, detail)

    def take_back_last(self) -> None:
        """Forget the last test: what came after it decides what becomes of it."""
        self.passed -= self.cases.pop().outcome is Outcome.OK

    def fail(self, outcome: Outcome, detail: str) -> None:
        """Keep why it failed; the first reason stands."""
        if self.outcome is Outcome.OK:
            self.outcome, self.detail = outcome, detail

    def judgement(self) -> Judgement:
        """What came of it."""
        return Judgement(
            outcome=self.outcome,
            tests_passed=self.passed,
            tests_run=len(self.cases) if self.run is None else self.run,
            tests_total=self.total,
            cases=tuple(self.cases),
            cpu_s=self._cpu_s,
            wall_s=self.wall_s,
            peak_rss_mib=self._peak_rss_mib,
            stdout=for_people(self._stdout[:_SHOWN_BYTES]),
            stderr=for_people(self._stderr[-_SHOWN_BYTES:]),
            detail=for_people(self.detail.encode("utf-8", "backslashreplace")).replace("\n", "\\n"),
            signals=Signals(
                denied=dict(self._denied), protocol_violations=self.violations, canary_read=self.canary_read
            ),
            level=self._level,
            integrity=self.integrity,
            slot=self._slot,
        )


def for_people(written: bytes) -> str:
    """Text that is safe to show: what cannot be printed is escaped."""
    text = written.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(
        one if one.isprintable() or one in "\n\t" else one.encode("unicode_escape").decode("ascii") for one in text
    )


def cut(text: str) -> str:
    """A value for one line of `detail`."""
    return text if len(text) <= _SHOWN_IN_DETAIL else f"{text[: _SHOWN_IN_DETAIL - 3]}..."


def last_line(written: bytes) -> str:
    """The last line that is not blank: of a traceback, the exception."""
    lines = written[-_SHOWN_BYTES:].decode("utf-8", "backslashreplace").strip().split("\n")
    return lines[-1].strip()


def ending(report: JobReport) -> str:
    """How a job ended that did not end well."""
    said = last_line(report.stderr)
    how = {
        Outcome.CPU: f"used {report.cpu_s:.1f} s of CPU",
        Outcome.WALL: f"took {report.wall_s:.1f} s",
        Outcome.SIGNAL: f"killed by signal {-report.exit_code}",
        Outcome.MEMORY: "out of memory",
        Outcome.OUTPUT: "wrote too much",
        Outcome.FORBIDDEN: f"denied system calls: {', '.join(sorted(report.denied))}",
    }.get(report.outcome, f"exit status {report.exit_code}")
    return f"{report.outcome}: {how}{f': {cut(said)}' if said else ''}"
