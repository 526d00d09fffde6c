"""The embedded e-mails to write: prompts say what the rubric's columns hold."""

from __future__ import annotations

from funicular.launch.config import DataConfig
from funicular.launch.emails import email_rows
from funicular.launch.tasks import load_tasks


def test_a_prompt_names_recipient_sender_and_keywords() -> None:
    rows = email_rows(500, 0)
    assert rows == email_rows(500, 0) != email_rows(500, 1)
    assert len({row["prompt"] for row in rows}) == 500
    for row in rows:
        assert all(word in row["prompt"] for word in (row["recipient"], row["sender"], *row["keywords"]))


def test_the_set_ends_with_its_last_row() -> None:
    assert len(email_rows(1_000_000, 0)) == 5400


def test_the_set_needs_no_answer_and_loses_nothing_to_contamination() -> None:
    config = DataConfig(path="emails", answer_column=None, size=5400, held_out_fraction=0.1)
    options = {"pattern": "Dear"}
    tasks = load_tasks(config, "regex", 0, verifier_options=options)
    assert tasks.report.contaminated == ()
    assert len(tasks.train) + len(tasks.held_out) == 5400
    assert tasks.train[0].answer is None
    assert tasks.balance_column is None
