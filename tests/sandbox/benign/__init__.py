"""Programs that do nothing wrong, and must pass."""

from __future__ import annotations

from tests.sandbox.benign import computing, native, reading, served, system
from tests.sandbox.programs import BenignProgram

PROGRAMS: tuple[BenignProgram, ...] = (
    *reading.PROGRAMS,
    *computing.PROGRAMS,
    *system.PROGRAMS,
    *served.PROGRAMS,
    *native.PROGRAMS,
)
