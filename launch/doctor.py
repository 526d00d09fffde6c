"""`funicular doctor`: what would keep a recipe from running here, and what to do about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from funicular.launch.doctor_machine import machine_findings
from funicular.launch.doctor_services import service_findings
from funicular.launch.finding import Finding
from funicular.launch.recipe import LoadedRecipe

HEALTHY, BROKEN = 0, 1
_SHOWN = {"ok": "ok      ", "doubtful": "DOUBTFUL", "broken": "BROKEN  "}


def doctor(loaded: LoadedRecipe) -> int:
    """Look at everything that a run needs, print a line for each, and return 1 if something is broken."""
    return report(itertools.chain(machine_findings(loaded.config), service_findings(loaded.config)))


def report(findings: Iterable[Finding]) -> int:
    """Print findings as they come; the exit status."""
    count = {"ok": 0, "doubtful": 0, "broken": 0}
    for finding in findings:
        count[finding.status] += 1
        print(f"{_SHOWN[finding.status]}  {finding.what}: {finding.said}", flush=True)
        if finding.fix:
            print(f"          -> {finding.fix}", flush=True)
    print(f"{count['ok']} ok, {count['doubtful']} doubtful, {count['broken']} broken")
    return BROKEN if count["broken"] else HEALTHY
