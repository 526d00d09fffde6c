"""Two runs of the suites on one machine do not share names, and the parts of one run do."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.sandbox import hostile
from tests.sandbox.programs import BAIT, BAIT_SHM_KEY, LEFTOVER, RUN, RUN_VARIABLE, named

pytestmark = pytest.mark.integration

_SHOW = "from tests.sandbox.programs import BAIT, BAIT_SHM_KEY, LEFTOVER; print(BAIT, LEFTOVER, BAIT_SHM_KEY)"


def _names(run: str) -> str:
    environment = {**os.environ, RUN_VARIABLE: run}
    return subprocess.run([sys.executable, "-c", _SHOW], env=environment, capture_output=True, text=True).stdout


def test_a_driver_uses_the_names_of_its_run_and_another_run_its_own() -> None:
    assert _names(RUN).split() == [BAIT, LEFTOVER, str(BAIT_SHM_KEY)]
    assert len({_names(RUN), _names(""), _names("")}) == 3


def test_programs_are_judged_with_the_names_of_their_run() -> None:
    sources = [named(program.source) for program in hostile.PROGRAMS]
    found = [name for source in sources for name in re.findall(r"funicular-(?:bait|left)(?:-\w+)?", source)]
    assert len(found) > 10
    assert {name.removesuffix("-file") for name in found if not name.endswith(RUN)} == set()
