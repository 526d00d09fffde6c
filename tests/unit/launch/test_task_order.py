from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from funicular.launch.task_order import TaskIterator
from funicular.rewards.types import Task


def tasks(count: int, kinds: int = 1) -> list[Task]:
    return [
        Task(task_id=str(n), prompt="", answer=None, verifier="math", columns={"kind": n % kinds}) for n in range(count)
    ]


def draw(iterator: TaskIterator, count: int) -> list[str]:
    return [iterator.next().task_id for _ in range(count)]


@given(
    count=st.integers(1, 30),
    kinds=st.integers(1, 4),
    seed=st.integers(0, 5),
    position=st.integers(0, 90),
    balance=st.sampled_from([None, "kind"]),
)
def test_an_iterator_resumes_exactly_at_any_position(
    count: int, kinds: int, seed: int, position: int, balance: str | None
) -> None:
    whole = TaskIterator(tasks(count, kinds), seed, balance_column=balance)
    drawn = draw(whole, position + 40)
    resumed = TaskIterator(tasks(count, kinds), seed, position=position, balance_column=balance)
    assert draw(resumed, 40) == drawn[position:]
    assert resumed.position == whole.position == position + 40
    assert resumed.epoch == (position + 40) // count


@given(count=st.integers(1, 30), seed=st.integers(0, 5), epochs=st.integers(1, 4))
def test_every_epoch_draws_every_task_once(count: int, seed: int, epochs: int) -> None:
    iterator = TaskIterator(tasks(count), seed)
    for _ in range(epochs):
        assert sorted(draw(iterator, count)) == sorted(str(n) for n in range(count))


def test_epochs_and_seeds_have_their_own_order() -> None:
    iterator = TaskIterator(tasks(50), 0)
    first, second = draw(iterator, 50), draw(iterator, 50)
    assert first != second
    assert first != draw(TaskIterator(tasks(50), 1), 50)


def test_the_order_is_the_same_on_every_machine() -> None:
    assert draw(TaskIterator(tasks(8), 0), 8) == ["0", "7", "1", "4", "2", "3", "6", "5"]


def test_values_of_the_balance_column_take_turns_however_many_tasks_they_have() -> None:
    uneven = [t for t in tasks(40, 2) if t.columns["kind"] == 0 or int(t.task_id) < 6]
    iterator = TaskIterator(uneven, 0, balance_column="kind")
    kinds = [int(iterator.next().task_id) % 2 for _ in range(60)]
    assert kinds == [0, 1] * 30
    rare = Counter(task_id for task_id in draw(TaskIterator(uneven, 0, balance_column="kind"), 60) if int(task_id) % 2)
    assert sorted(rare.items()) == [("1", 10), ("3", 10), ("5", 10)]


def test_setting_the_position_goes_back() -> None:
    iterator = TaskIterator(tasks(7), 0)
    drawn = draw(iterator, 30)
    iterator.position = 5
    assert draw(iterator, 25) == drawn[5:]


def test_nothing_to_draw_from_and_a_negative_position_are_errors() -> None:
    with pytest.raises(ValueError, match="no tasks"):
        TaskIterator([], 0)
    with pytest.raises(ValueError, match="position=-1"):
        TaskIterator(tasks(1), 0, position=-1)
