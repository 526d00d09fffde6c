"""Real slots for tests of the judge: started when first needed, at the best level that this kernel allows."""

from __future__ import annotations

from collections.abc import Iterator

from funicular.rewards.sandbox.judge import judge
from funicular.rewards.sandbox.slot_process import SlotLost, SlotProcess, SlotRole
from funicular.rewards.sandbox.types import Judgement, Level, Limits, Outcome, Program, TestSet
from tests.slots import best_possible_level

QUICK = Limits(cpu_s=1.0)
BRIEF = Limits(cpu_s=0.2)
"""For programs that use their time up; about 2 s of wall time."""
OUT_OF_TIME = {Outcome.CPU, Outcome.WALL}
"""Of a program that spins: on a loaded machine its wall time may be over first."""


def started_slots() -> Iterator[Slots]:
    """For fixtures; skips where the kernel allows no level, and fails where one does and no slot starts."""
    held = Slots(best_possible_level())
    held.get(SlotRole.CANDIDATE)
    yield held
    held.close()


class Slots:
    """As a lane has them, for one thread."""

    def __init__(self, level: Level) -> None:
        self._held: dict[SlotRole, SlotProcess] = {}
        self.level = level

    def get(self, role: SlotRole) -> SlotProcess:
        """The slot of a role."""
        if role not in self._held:
            self._held[role] = self._started(role, self.level)
        return self._held[role]

    def judge(self, source: str, tests: TestSet, *, language: str = "python", **options: object) -> Judgement:
        """Judge a program; a slot that is lost fails the test that uses this."""
        limits = options.pop("limits", QUICK)
        assert isinstance(limits, Limits)
        try:
            return judge(self, Program(source=source, language=language), tests, limits, **options)  # type: ignore[arg-type]
        except SlotLost:
            self.close()
            raise

    def close(self) -> None:
        """End them all."""
        for slot in self._held.values():
            slot.kill()
        self._held.clear()

    @staticmethod
    def _started(role: SlotRole, level: Level) -> SlotProcess:
        return SlotProcess(role=role, level=level, name=f"test-{role}", slot_number=90)
