"""What the kernel says of a child's memory."""

from __future__ import annotations

import os
import subprocess
import sys

from funicular.actors.process_memory import largest_descendant, resident

MIB = 1 << 20


def test_resident_memory_is_what_this_process_has_now() -> None:
    before = resident()
    held = bytearray(os.urandom(64 * MIB))
    grown = resident() - before
    del held
    assert 50 * MIB < grown < 200 * MIB


def test_the_largest_descendant_is_found_below_a_child_that_is_small() -> None:
    grandchild = "import sys; held = bytearray(80 << 20); print(1, flush=True); sys.stdin.read()"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        assert 80 * MIB < largest_descendant(os.getpid()) < 200 * MIB
        running.communicate()
    assert largest_descendant(running.pid) == 0
