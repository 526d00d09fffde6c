"""The bait, once for all suites, and their reports, made when first asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sandbox import bait


@pytest.fixture(scope="session")
def the_bait() -> Iterator[bait.Bait]:
    """Secrets and files that hostile programs look for."""
    with bait.set_out() as set_out:
        yield set_out
