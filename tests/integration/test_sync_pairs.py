"""Weight sync under every two faults at every two moments: some 4,000 paths of the real transaction. A minute."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.explore import every_path
from tests.sync_walk import walk

pytestmark = [pytest.mark.integration]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of generators are rebuilt here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_no_two_faults_break_a_promise() -> None:
    paths = sum(1 for _ in every_path(lambda choices: walk(choices, generators=1, faults=2)))
    assert paths > 3000
