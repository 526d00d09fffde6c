"""What a part tells of itself: one thing at a time, and since when."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from funicular.actors import doing
from funicular.actors.doing import DOING, Doing, told


class FakeGauges:
    """Keeps what stands at the endpoint."""

    def __init__(self) -> None:
        self.there: dict[str, float] = {}
        self.ended: list[str] = []

    def set(self, name: str, description: str, value: float, **labels: str) -> None:
        assert name == DOING
        self.there[labels["doing"]] = value

    def end(self, name: str, description: str, **labels: str) -> None:
        if self.there.pop(labels["doing"], None) is not None:
            self.ended.append(labels["doing"])


class Part:
    """Works, well or not, and yields."""

    def __init__(self, gauges: Any) -> None:
        self.gauges = gauges
        self.doing = Doing(gauges)

    @told
    def work(self, x: int, *, fails: bool = False) -> int:
        """Its own docstring."""
        assert list(self.gauges.there) == ["work"]
        if fails:
            raise RuntimeError
        return x + 1

    @told
    def outer(self) -> list[str]:
        self.work(1)
        return list(self.gauges.there)

    @told
    def stream(self) -> Iterator[str]:
        yield from self.gauges.there


@pytest.fixture
def gauges(monkeypatch: pytest.MonkeyPatch) -> FakeGauges:
    monkeypatch.setattr(doing.time, "time", iter(range(100, 200)).__next__)
    return FakeGauges()


def test_a_part_is_idle_until_it_is_called_and_again_afterwards(gauges: FakeGauges) -> None:
    part = Part(gauges)
    assert gauges.there == {"idle": 100}
    assert part.work(1) == 2
    assert gauges.there == {"idle": 102}
    assert gauges.ended == ["idle", "work"]
    with pytest.raises(RuntimeError):
        part.work(1, fails=True)
    assert gauges.there == {"idle": 104}


def test_within_a_call_another_may_be_told_and_the_first_goes_on(gauges: FakeGauges) -> None:
    assert Part(gauges).outer() == ["outer"]


def test_a_stream_is_under_way_until_it_is_read(gauges: FakeGauges) -> None:
    part = Part(gauges)
    stream = part.stream()
    assert list(gauges.there) == ["idle"]
    assert next(stream) == "stream"
    assert list(gauges.there) == ["stream"]
    with pytest.raises(StopIteration):
        next(stream)
    assert list(gauges.there) == ["idle"]


def test_a_method_keeps_its_name_and_its_docstring_and_without_gauges_nobody_is_told() -> None:
    assert (Part.work.__name__, Part.work.__doc__) == ("work", "Its own docstring.")
    with Doing(None)("something"):
        assert time.time() > 0
