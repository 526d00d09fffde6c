"""The tests of losses and advantages notice plausible mistakes. The table is printed at the end of the run."""

from __future__ import annotations

import pytest

from tests.mutations.checks import failure_of
from tests.mutations.copies import ROOT, ChangedCopy, Patch
from tests.mutations.mutants import MUTANTS, Mutant

TABLE = pytest.StashKey[list[tuple[str, str, str]]]()


def test_the_checks_pass_on_a_copy_without_changes() -> None:
    with ChangedCopy([]) as copy:
        for check in sorted({check for mutant in MUTANTS for check in mutant.caught_by}):
            assert failure_of(copy, check) is None, check


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_noticed(mutant: Mutant, request: pytest.FixtureRequest) -> None:
    with ChangedCopy(mutant.patches) as copy:
        found = {check: failure_of(copy, check) for check in mutant.caught_by}
    survived = [check for check, failure in found.items() if failure is None]
    assert not survived, f"{mutant.name}: not noticed by {', '.join(survived)}"
    rows = request.config.stash.setdefault(TABLE, [])
    rows.extend((mutant.name, check, failure or "") for check, failure in found.items())


def test_mutations_are_many_and_have_names_of_their_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30


def test_a_mutation_whose_source_is_gone_fails_loudly() -> None:
    gone = Patch(file="losses/kl.py", old="no such text", new="")
    with ChangedCopy([gone]) as copy, pytest.raises(LookupError, match="found 0 times, expected once"):
        copy.module("actors.losses.kl")


def test_a_check_that_never_loads_the_changed_file_fails_loudly() -> None:
    source = (ROOT / "actors" / "losses" / "kl.py").read_text()
    patch = Patch(file="losses/kl.py", old=source, new="raise AssertionError")
    with ChangedCopy([patch]) as copy, pytest.raises(LookupError, match="does not import"):
        copy.module("tests.unit.actors.test_advantage")
