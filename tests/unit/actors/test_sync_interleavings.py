"""Weight sync under every fault at every moment: the real transaction, in virtual time, over engines that fail."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator

import pytest

from tests.explore import Choices, NothingWillHappen, every_path, run_in_virtual_time
from tests.sync_walk import walk


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of generators are rebuilt here."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("generators", "frozen", "broadcast"),
    [(1, False, False), (2, False, False), (2, True, False), (1, False, True), (2, True, True)],
)
def test_no_single_fault_breaks_a_promise(generators: int, frozen: bool, broadcast: bool) -> None:
    paths = list(
        every_path(lambda choices: walk(choices, generators=generators, faults=1, frozen=frozen, broadcast=broadcast))
    )
    assert len({path.words[0] for path in paths if path.words}) > 50, "every fault of every call was met"


def test_no_two_or_three_faults_on_random_paths_break_a_promise() -> None:
    answers = random.Random(0)
    for _ in range(100):
        given = [answers.choice((0, 0, 0, 1, 2, 3, 4, 5)) for _ in range(60)]
        walk(RandomChoices(given), generators=2, faults=3)
        walk(RandomChoices(given), generators=2, faults=3, broadcast=True)


class RandomChoices(Choices):
    """Answers that may be larger than there are options."""

    def choose(self, what, options):  # type: ignore[no-untyped-def]
        number = len(self.taken)
        if number < len(self._given):
            self._given[number] %= len(options)  # type: ignore[index]
        return super().choose(what, options)


def test_the_explorer_walks_every_path_once() -> None:
    def walk_a_tree(choices: Choices) -> None:
        if choices.choose("first", "ab") == "b":
            choices.choose("second", "xyz")

    taken = [tuple(option for option, _ in path.taken) for path in every_path(walk_a_tree)]
    assert taken == [(0,), (1, 0), (1, 1), (1, 2)]


def test_the_explorer_notices_a_wait_without_a_deadline() -> None:
    async def wait_for_ever() -> None:
        await asyncio.sleep(3600)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(NothingWillHappen):
        run_in_virtual_time(wait_for_ever)
