"""The states of an engine's weights are those of the documentation, and nothing else can happen."""

import itertools
import re
from pathlib import Path
from typing import get_args

import pytest

from funicular.actors.install_states import TRANSITIONS, Event, WeightState, after

DOCS = Path(__file__).parents[3] / "docs" / "weight_sync.md"


def test_the_documentation_has_the_same_table() -> None:
    row = re.compile(r"^\| `(\w+)` \|[^|]*\|[^|]*\| `(\w+)` \| `(\w+)` \|$", re.MULTILINE)
    documented = {(state, event): following for state, event, following in row.findall(DOCS.read_text())}
    assert documented == {(str(state), event): str(following) for (state, event), following in TRANSITIONS.items()}


def test_what_the_table_does_not_have_is_our_fault() -> None:
    for state, event in itertools.product(WeightState, get_args(Event)):
        if (state, event) in TRANSITIONS:
            assert after(state, event) is TRANSITIONS[state, event]
        else:
            with pytest.raises(RuntimeError, match=f"weights that are {state} cannot be {event}"):
                after(state, event)
