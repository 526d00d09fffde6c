"""The rubric for e-mails: recipient, signature, keywords."""

from typing import Any

import pytest

from funicular.rewards.keywords import keywords
from funicular.rewards.letter import recipient, signature

EMAIL = """Subject: Your order 1182

Dear Dr. Maria Keller,

thank you for your patience. We will refund your order this week.

Best regards,
Tom Brown
Customer service
"""


@pytest.mark.parametrize("name", ["Maria Keller", "Dr. Maria Keller", "Keller", "Ms Maria"])
def test_one_part_of_the_name_in_the_greeting_is_enough(name: str) -> None:
    assert recipient([EMAIL], recipient=[name]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "Hi Maria,\nhow are you?",
        "Hello, Maria! How are you?",
        "**Good morning Ms Keller**\nhow are you?",
        "Dear Maria - a question:",
        "To: maria@example.org\nDEAR MARIA,",
    ],
)
def test_greetings_come_in_many_forms(text: str) -> None:
    assert recipient([text], recipient=["Maria Keller"]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Dear Customer,\nMaria, hello.",
        "Maria,\nhow are you?",
        "Hidden Maria,",
        "Dear Marianne,",
        "Dear Anna, Maria, Bob,",
        "Dear Anna and Bob and Carl and Maria,",
        "I write to you.\nDear Maria,",
        "Dear [Recipient],",
        "Hi",
        "Dear Dr.,",
    ],
)
def test_what_does_not_greet_the_recipient_gets_nothing(text: str) -> None:
    assert recipient([text], recipient=["Dr. Maria Keller"]) == [0.0]


def test_recipient_does_not_apply_to_tasks_without_one_and_misses_a_column() -> None:
    assert recipient([EMAIL, EMAIL], to=[None, ""], column="to") == [None, None]
    with pytest.raises(ValueError, match="no column 'recipient'; nearest: recipients"):
        recipient([EMAIL], recipients=["Maria"])


def test_recipient_takes_other_greetings() -> None:
    assert recipient(["Sehr geehrte Frau Keller,"], recipient=["Keller"], greetings=["Sehr geehrte"]) == [1.0]
    with pytest.raises(ValueError, match="greetings='Hi'"):
        recipient([], greetings="Hi")


@pytest.mark.parametrize(
    "text", [EMAIL, "Bye.\n\nThanks,\nTom", "Bye.\nBest, Tom", "**Sincerely,**\n*Tom Brown*", "x\nCheers!\nTom"]
)
def test_a_closing_with_a_name_below_it_is_a_signature(text: str) -> None:
    assert signature([text]) == [1.0]
    assert signature([text], name="Tom Brown") == [1.0]
    assert signature([text], column="sender", sender=["Tom Brown"]) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Tom Brown",
        "Best regards,",
        "Best regards,\n[Your Name]",
        "Best regards,\nYour Name",
        "Best regards,\nyour full name here",
        "Best regards,\n12345",
        "Thank you for your help.\nI will write again and again and again until someone reads it",
        "Best regards,\nTom\n" + "One more thing.\n" * 5,
        "Bestow it,\nTom",
    ],
)
def test_a_placeholder_or_half_a_signature_is_none(text: str) -> None:
    assert signature([text]) == [0.0]
    assert signature([text], name="Alex") == [0.0]


def test_signature_with_another_name_is_not_the_senders() -> None:
    assert signature([EMAIL], name="Tim") == [0.0]
    assert signature([EMAIL, EMAIL], column="sender", sender=["Brown", None]) == [1.0, None]
    with pytest.raises(ValueError, match="at most one"):
        signature([], name="a", column="b")


def test_keywords_gives_the_share_of_what_is_required_unless_something_forbidden_occurs() -> None:
    texts = ["A refund for order number 5.", "A REFUND.", "Refunds", "A refund, order number 5, alas"]
    assert keywords(texts, required=["refund", "order number"], forbidden=["alas"]) == [1.0, 0.5, 0.0, 0.0]
    assert keywords(["fine", "alas", ""], forbidden=["alas"]) == [1.0, 0.0, 1.0]
    assert keywords(["A REFUND."], required=["refund"], ignore_case=False) == [0.0]


def test_keywords_of_each_task_come_from_a_column() -> None:
    words = [["refund", "Friday"], "refund", None]
    assert keywords(["a refund"] * 3, required_column="words", words=words) == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("options", [{}, {"required": "refund"}, {"forbidden": [" "]}, {"required": [1]}])
def test_keywords_refuses_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="keywords"):
        keywords([], **options)
