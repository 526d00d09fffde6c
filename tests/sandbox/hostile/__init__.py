"""Programs that attack the sandbox. Each must fail its task, leave nothing behind, and harm no later job."""

from __future__ import annotations

from tests.sandbox.hostile import (
    encodings,
    escape,
    escape_kernel,
    exhaustion,
    exhaustion_memory,
    exhaustion_time,
    hacking_calls,
    hacking_names,
    hacking_prints,
    hacking_tests,
    hacking_values,
    judge_sizes,
    judge_waits,
    leaks,
    native,
    native_compiled,
    persistence,
)
from tests.sandbox.programs import HostileProgram

CATEGORIES: dict[str, tuple[HostileProgram, ...]] = {
    "exhaustion": (*exhaustion.PROGRAMS, *exhaustion_memory.PROGRAMS, *exhaustion_time.PROGRAMS),
    "escape": (*escape.PROGRAMS, *escape_kernel.PROGRAMS),
    "leaks": leaks.PROGRAMS,
    "persistence": persistence.PROGRAMS,
    "reward hacking": (
        *hacking_prints.PROGRAMS,
        *hacking_calls.PROGRAMS,
        *hacking_values.PROGRAMS,
        *hacking_tests.PROGRAMS,
        *hacking_names.PROGRAMS,
    ),
    "encodings": encodings.PROGRAMS,
    "denial of service": (*judge_sizes.PROGRAMS, *judge_waits.PROGRAMS),
    "other languages": (*native.PROGRAMS, *native_compiled.PROGRAMS),
}
PROGRAMS: tuple[HostileProgram, ...] = tuple(program for programs in CATEGORIES.values() for program in programs)
