"""The health of a verifier, before a run: the reference answer of a task must pass, and an empty answer must fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from funicular.launch.config import Config
from funicular.launch.local_scoring import details_text, local_runner, verifier_alone
from funicular.rewards.reference import answer_in_tags, reference_text
from funicular.rewards.types import Status, Task, Verdict

_SHOWN = 160


class HealthError(ValueError):
    """A verifier that says no to reference answers, or yes to an empty one; names each task that shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What was checked, of a verifier that is well."""

    tasks: int
    with_reference: int
    """Tasks whose reference answer could be written as a completion, and passed."""

    def __str__(self) -> str:
        if self.with_reference == self.tasks:
            return f"the verifier is well: {self.tasks} reference answers pass, {self.tasks} empty ones fail"
        return (
            f"the verifier is well: {self.tasks} empty answers fail, {self.with_reference} reference answers pass; "
            f"{self.tasks - self.with_reference} tasks have no reference that could be written as a completion"
        )


def check_health(config: Config, folder: Path, tasks: Sequence[Task]) -> HealthReport:
    """Verify the reference answer and an empty answer of each task, with the recipe's verifier.

    Where the prompt asks for `<answer>` tags, also the answer alone in them.

    Args:
        folder: the recipe's.
        tasks: those to check; see `reward.health_tasks`.

    Raises:
        HealthError: at least one was not judged as expected; all of them are named.
        ValueError: this machine does not contain untrusted code as the recipe requires.
    """
    alone = replace(
        config,
        reward=verifier_alone(config.reward),
        sandbox=replace(config.sandbox, slots=1),
    )
    problems: list[str] = []
    contradicted = tags_unread = False
    with_reference = 0
    with local_runner(alone, folder) as runner:
        for task in tasks:
            reference = reference_text(task, config.reward.verifier_options)
            in_tags = answer_in_tags(task, config.reward.verifier_options)
            texts = ["", *dict.fromkeys(text for text in (reference, in_tags) if text is not None)]
            verdicts, _ = runner.score(task, texts, [[] for _ in texts])
            problems += problems_of(task, texts, verdicts)
            wrong = [text for text, verdict in zip(texts, verdicts, strict=True) if _contradicts(text, verdict)]
            contradicted |= bool(wrong)
            tags_unread |= in_tags in wrong and reference not in wrong
            with_reference += reference is not None
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        consequence, remedy = "", ""
        if contradicted:
            consequence = "; a policy would learn from wrong verdicts"
            remedy = "Correct the data (data.answer_column, data.answer_pattern) or reward.verifier; "
        if tags_unread:
            remedy = (
                "The prompt asks for <answer> tags. Take a verifier that reads them, with reward.verifier_options.tag="
                "answer (number, exact_text, choice), or let the prompt ask for what this one reads; "
            )
        raise HealthError(
            f"reward.verifier={config.reward.verifier} fails its health check on {len(tasks)} tasks{consequence}:\n"
            f"{listed}\n{remedy}reward.health_tasks=0 trains without this check."
        )
    return HealthReport(tasks=len(tasks), with_reference=with_reference)


def problems_of(task: Task, texts: Sequence[str], verdicts: Sequence[Verdict]) -> list[str]:
    """What is wrong with the verdicts on a task's reference answer and on an empty text, a line each."""
    found = []
    for text, verdict in zip(texts, verdicts, strict=True):
        if _contradicts(text, verdict) or verdict.status is Status.INFRA_ERROR:
            what = f"the reference answer, as '{_short(text)}'," if text else "an empty answer"
            wanted = Status.PASSED if text else Status.FAILED
            said = _short(details_text(verdict))
            found.append(f"task {task.task_id}: {what} gave {verdict.status}, expected {wanted} ({said})")
    return found


def _contradicts(text: str, verdict: Verdict) -> bool:
    """Whether a verdict was given, and it is the wrong one."""
    return verdict.status is not Status.INFRA_ERROR and (verdict.status is Status.PASSED) != bool(text)


def _short(text: str) -> str:
    shown = repr(text)[1:-1]
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
