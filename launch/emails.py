"""The embedded set of short e-mails to write, made by rule: there is no right answer, a rubric scores them."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

_RECIPIENTS = (
    "Ana Silva", "Ben Carter", "Chloe Martin", "David Kim", "Elena Rossi", "Farid Haddad", "Grace Owens", "Hugo Weber",
    "Ines Moreau", "Jonas Berg", "Karin Holm", "Liam Walsh", "Maria Keller", "Noah Fischer", "Olga Novak", "Paul Meyer",
)  # fmt: skip
_SENDERS = ("Tom Reed", "Sara Lind", "Victor Hugh", "Wendy Park", "Yusuf Aydin", "Zoe Adams")
_REQUESTS = (
    ("asks for a refund of order {n}", ("refund", "{n}")),
    ("confirms the meeting in room {n}", ("meeting", "{n}")),
    ("sends invoice {n} and asks to pay", ("invoice", "{n}")),
    ("says that parcel {n} is late", ("parcel", "{n}")),
    ("cancels the booking of table {n}", ("booking", "{n}")),
    ("thanks for the report on project {n}", ("report", "{n}")),
)
_NUMBERS = range(100, 1000)


def email_rows(size: int, seed: int) -> list[dict[str, Any]]:
    """Rows with columns prompt, recipient, sender and keywords (words that the e-mail must hold).

    Args:
        size: rows; fewer if there are no more (5,400).
    """
    draw = random.Random(f"{seed}/emails")
    # A request with its number comes once: the same 13 words in a row would make the contamination check drop it.
    requests = list(product(_REQUESTS, _NUMBERS))
    chosen = draw.sample(requests, min(size, len(requests)))
    return [_row(draw.choice(_RECIPIENTS), draw.choice(_SENDERS), request, number) for request, number in chosen]


def _row(recipient: str, sender: str, request: tuple[str, tuple[str, ...]], number: int) -> dict[str, Any]:
    says, keywords = request
    return {
        "prompt": f"E-mail to {recipient} that {says.format(n=number)}. Sign as {sender}.",
        "recipient": recipient,
        "sender": sender,
        "keywords": [word.format(n=number) for word in keywords],
    }
