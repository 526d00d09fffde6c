"""The verifier `code`: a completion's program passes the task's tests in the sandbox, or it does not.

It runs on the trusted side of the scorer, which hands programs to a judge (the sandbox of its node); the other
verifiers run in the scorer's child process.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from funicular.rewards.code_text import complete, extract_program
from funicular.rewards.nearest import known_names
from funicular.rewards.sandbox.formats import FORMATS, parse_tests
from funicular.rewards.sandbox.judge import LANGUAGES, check_judgeable, count_tests
from funicular.rewards.sandbox.types import Comparison, Judgement, Outcome, Program, TestSet
from funicular.rewards.types import Status, Task
from funicular.rewards.verification import Verification

__all__ = ["CodeJudge", "CodeOptions", "check_tests", "extract_program", "verify_code"]

NO_PROGRAM = "no program"
"""Outcome in the details of a text that has none; such a text never reaches the sandbox."""
_KEPT_TEST_SETS = 64
_STATUS = {
    Outcome.OK: Status.PASSED,
    Outcome.CPU: Status.TIMEOUT,
    Outcome.WALL: Status.TIMEOUT,
    Outcome.INFRA_ERROR: Status.INFRA_ERROR,
}


class CodeJudge(Protocol):
    """Judges programs: a sandbox, or the sandbox pools of a cluster."""

    def __call__(self, programs: Sequence[Program], tests: TestSet) -> list[Judgement]:
        """The verdict on each program, in order.

        Raises:
            ValueError: such tests cannot be judged.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOptions:
    """Options of the verifier; `verify_code` describes them."""

    tests_column: str = "tests"
    format: str = "auto"
    language: str = "python"
    entry_point_column: str = "entry_point"
    prefix_column: str | None = None
    prelude: str = ""
    setup_column: str = "test_setup_code"
    metadata_column: str = "metadata"
    tolerance: float = 0.0
    ignore_case: bool = False
    unordered_lines: bool = False
    same_process: bool = False

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ValueError: names the option, its value and what was expected.
        """
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is float:
                fits, expected = _is_tolerance(value), "a number, 0 or more"
            elif kind is bool:
                fits, expected = isinstance(value, bool), "true or false"
            else:
                fits, expected = isinstance(value, str) or value is field.default, "text"
            if not fits:
                raise ValueError(f"{field.name}={value!r}: expected {expected}")
        for name, known in (("format", FORMATS), ("language", LANGUAGES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r}: {known_names(value, known)}")


def verify_code(
    task: Task,
    texts: Sequence[str],
    judge: CodeJudge,
    *,
    tests_column: str = "tests",
    format: str = "auto",
    language: str = "python",
    entry_point_column: str = "entry_point",
    prefix_column: str | None = None,
    prelude: str = "",
    setup_column: str = "test_setup_code",
    metadata_column: str = "metadata",
    tolerance: float = 0.0,
    ignore_case: bool = False,
    unordered_lines: bool = False,
    same_process: bool = False,
) -> list[Verification]:
    """Correct if the program in the text passes every test of the task.

    Args:
        texts: completions of one task.
        judge: runs the programs.
        tests_column: column with the tests.
        format: of the tests, one of `sandbox.formats.FORMATS`; auto: found out.
        language: of the programs: python, bash, cpp or javascript. The last three for standard input and output
            only, and at level L3.
        entry_point_column: column with the name of the candidate's function (HumanEval), where there is one.
        prefix_column: column with the Python text that the completion continues (HumanEval's prompt). It is put
            before a completion that is only a body; the tests may use what it defines.
        prelude: source put before every program, such as the imports that LiveCodeBench's signatures need.
        setup_column: column with source, or a list of imports, before MBPP's asserts, where there is one.
        metadata_column: column in which LiveCodeBench names the function, where there is one.
        tolerance: absolute and relative, for decimal numbers in outputs and results.
        ignore_case: in outputs and results.
        unordered_lines: lines of an output, or elements of a result, may come in any order.
        same_process: tests and program share a process, so that the program can forge its verdict.

    Returns:
        One verification per text. Its details: the sandbox's outcome, level, integrity, CPU seconds, how many tests
        passed, a line for people, and signs of reward hacking.

    Raises:
        ValueError: the task's tests cannot be read or judged.
    """
    options = CodeOptions(
        tests_column=tests_column,
        format=format,
        language=language,
        entry_point_column=entry_point_column,
        prefix_column=prefix_column,
        prelude=prelude,
        setup_column=setup_column,
        metadata_column=metadata_column,
        tolerance=tolerance,
        ignore_case=ignore_case,
        unordered_lines=unordered_lines,
        same_process=same_process,
    )
    tests = _PARSED.tests(task, options)
    sources = [_program(task, text, options) for text in texts]
    programs = [Program(source=source, language=language) for source in sources if source]
    judgements = iter(judge(programs, tests) if programs else [])
    return [_verification(next(judgements)) if source else _without_program(tests) for source in sources]


def check_tests(task: Task, **options: Any) -> None:
    """Check that the tests of a task can be read and judged; runs none.

    Args:
        options: as of `verify_code`.

    Raises:
        ValueError: names the task and the column, what was there and what was expected.
    """
    chosen = CodeOptions(**options)
    tests = _parse(task, chosen)
    try:
        # Whether the recipe accepts weak integrity, and which level its nodes reach, is decided elsewhere.
        check_judgeable(tests, chosen.language, allow_weak=True)
    except ValueError as error:
        raise ValueError(f"task {task.task_id}: {error}") from None


def _is_tolerance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


class _ParsedTests:
    """The test sets that were parsed last, by task and options."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[tuple[str, CodeOptions], tuple[Mapping[str, Any], TestSet]] = OrderedDict()
        self._lock = threading.Lock()

    def tests(self, task: Task, options: CodeOptions) -> TestSet:
        """The task's tests; parsed only if they are not those of the same task the last time."""
        key = task.task_id, options
        with self._lock:
            columns, tests = self._kept.get(key, (None, None))
            if tests is None or columns != task.columns:
                tests = _parse(task, options)
                self._kept[key] = task.columns, tests
            self._kept.move_to_end(key)
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
            return tests


_PARSED = _ParsedTests(_KEPT_TEST_SETS)


def _parse(task: Task, options: CodeOptions) -> TestSet:
    columns = task.columns
    for column in (options.tests_column, options.prefix_column):
        if column is not None and column not in columns:
            raise ValueError(f"task {task.task_id}: the data has no column {column!r}; {known_names(column, columns)}")
    return parse_tests(
        columns[options.tests_column],
        format=options.format,
        entry_point=columns.get(options.entry_point_column) or None,
        prompt=None if options.prefix_column is None else columns[options.prefix_column],
        setup=columns.get(options.setup_column) or None,
        metadata=columns.get(options.metadata_column) or None,
        comparison=Comparison(
            tolerance=options.tolerance,
            ignore_case=options.ignore_case,
            unordered_lines=options.unordered_lines,
        ),
        same_process=options.same_process,
        name=f"task {task.task_id}: column {options.tests_column}",
    )


def _program(task: Task, text: str, options: CodeOptions) -> str:
    source = extract_program(text, options.language)
    entry_point = task.columns.get(options.entry_point_column)
    if source and options.prefix_column is not None and entry_point:
        source = complete(source, task.columns[options.prefix_column], entry_point)
    # An import from __future__ must stand first; a program with one brings its other imports too.
    if source and options.prelude and "__future__" not in source:
        source = f"{options.prelude}\n{source}"
    return source


def _verification(judgement: Judgement) -> Verification:
    signals = judgement.signals
    details = {
        "outcome": judgement.outcome.value,
        "tests_passed": str(judgement.tests_passed),
        "tests_total": str(judgement.tests_total),
        "level": "" if judgement.level is None else judgement.level.value,
        "integrity": judgement.integrity.value,
        "cpu_s": f"{judgement.cpu_s:.3f}",
        "detail": judgement.detail,
    }
    if signals.denied:
        details["denied"] = ",".join(f"{call}:{count}" for call, count in sorted(signals.denied.items()))
    if signals.protocol_violations:
        details["protocol_violations"] = str(signals.protocol_violations)
    if signals.canary_read:
        details["canary_read"] = "true"
    return Verification(correct=judgement.passed, details=details, status=_STATUS.get(judgement.outcome, Status.FAILED))


def _without_program(tests: TestSet) -> Verification:
    details = {
        "outcome": NO_PROGRAM,
        "tests_passed": "0",
        "tests_total": str(count_tests(tests)),
        "detail": "the completion has no program",
    }
    return Verification(correct=False, details=details, status=Status.FAILED)
