"""Acceptance on GSM8K itself, both splits: every gold answer passes, and every answer off by one fails."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from funicular.rewards.numeric import as_number
from funicular.rewards.types import Task
from funicular.rewards.verifiers import VERIFIERS

DATA = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
ROWS = {"train": 7473, "test": 1319}

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"GSM8K is not here: no {DATA.parent.name}/{DATA.name} beside"
)


def solutions(split: str) -> list[str]:
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines if line.strip()]


def final(solution: str) -> str:
    return solution.rpartition("####")[2].strip()


def off_by_one(answer: str) -> list[str]:
    value = as_number(answer)
    assert value is not None
    return [str(value + 1), str(value - 1), f"{value + Decimal('0.1')}"]


def verdict(verifier: str, reference: str, text: str) -> bool:
    return VERIFIERS[verifier](Task(task_id="t", prompt="p", answer=reference, verifier=verifier), text).correct


@pytest.mark.parametrize("split", ROWS)
def test_every_gold_solution_passes_and_off_by_one_fails(split: str) -> None:
    read = solutions(split)
    assert len(read) == ROWS[split]
    for solution in read:
        answer = final(solution)
        body = solution.rpartition("####")[0]
        assert verdict("gsm8k", solution, solution), solution
        assert verdict("gsm8k", answer, solution), solution
        assert verdict("exact_number", answer, solution), solution
        for wrong in off_by_one(answer):
            assert not verdict("gsm8k", solution, f"{body}#### {wrong}"), (solution, wrong)
            assert not verdict("exact_number", answer, f"{body}#### {wrong}"), (solution, wrong)


@pytest.mark.parametrize("split", ROWS)
@pytest.mark.parametrize("verifier", ["math", "boxed", "number"])
def test_extracted_gold_answers_pass_the_other_verifiers_and_off_by_one_fails(split: str, verifier: str) -> None:
    """Integers never start sympy, so this is all of GSM8K."""
    for answer in map(final, solutions(split)):
        assert verdict(verifier, answer, f"So it is \\boxed{{{answer}}}"), answer
        for wrong in off_by_one(answer)[:2]:
            assert not verdict(verifier, answer, f"So it is \\boxed{{{wrong}}}"), (answer, wrong)


@pytest.mark.parametrize("split", ROWS)
def test_math_verify_itself_reads_gold_answers_in_prose(split: str) -> None:
    """Without a box or `####` math-verify has to find the number: a part of the data, since each takes a while."""
    for answer in list(map(final, solutions(split)))[:: ROWS[split] // 100]:
        assert verdict("math", answer, f"Adding them up, the answer is {answer}."), answer
        assert not verdict("math", answer, f"Adding them up, the answer is {off_by_one(answer)[0]}."), answer
