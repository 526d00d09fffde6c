"""Checkpoints in a folder, a URI, and file systems that fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from funicular.actors.errors import RunStopped
from funicular.launch import checkpoint_store, checkpoints
from funicular.launch.addresses import shown_address
from funicular.launch.checkpoint_store import Store, StoreError, open_store
from funicular.launch.checkpoints import Checkpoints
from funicular.launch.config import CheckpointConfig
from tests.fake_store import faulty_store
from tests.unit.launch.test_checkpoints import POSITION, FakeLearner, names


def calm(operation: str, path: str) -> None:
    pass


def make(folder: Path, store: Store, **config: Any) -> Checkpoints:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "ledger.jsonl").write_text('{"event":"attempt","attempt":1}\n')
    return Checkpoints(folder / "checkpoints", CheckpointConfig(**config), store)


async def begin(kept: Checkpoints, step: int, evaluation: dict[str, float] | None = None) -> None:
    ledger = kept._folder.parent / "ledger.jsonl"
    await kept.save(step, POSITION, None, FakeLearner(f"of {step}").save, ledger=ledger, evaluation=evaluation)


async def save(kept: Checkpoints, step: int, evaluation: dict[str, float] | None = None) -> None:
    await begin(kept, step, evaluation)
    await kept.settle()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_store, "_FIRST_PAUSE_S", 0.01)


STORES: dict[str, Callable[[Path], Store]] = {
    "folder": lambda path: open_store(str(path / "store"), "run"),
    "file-uri": lambda path: open_store(f"file://{path}/store", "run"),
    "mock-uri": lambda path: open_store("mock:///store", "run"),
    "subtree": lambda path: Store(fs.SubTreeFileSystem(str(path), fs.LocalFileSystem()), "store/run", "a subtree"),
    "python": lambda path: faulty_store(path / "store" / "run", calm),
}


@pytest.mark.parametrize("kind", STORES)
async def test_a_run_on_another_machine_gets_the_newest_checkpoint_from_the_store(tmp_path: Path, kind: str) -> None:
    store = STORES[kind](tmp_path)
    here = make(tmp_path / "here", store)
    here.refuse_unwritable()
    assert here.newest_anywhere() is None
    for step in (5, 10, 15):
        await save(here, step)
    assert store.steps() == [10, 15], "keep_last is the store's"
    assert names(tmp_path / "here" / "checkpoints") == ["step_000015"], "the run folder keeps the newest"
    assert here.not_stored is None

    there = make(tmp_path / "there", store)
    snapshot = there.newest_anywhere()
    assert snapshot is not None
    assert snapshot.path == tmp_path / "there" / "checkpoints" / "step_000015"
    assert (Path(snapshot.learner) / "rank" / "0.pt").read_text() == "of 15"
    assert snapshot.position == POSITION
    assert (snapshot.path / "ledger.jsonl").read_text() == (tmp_path / "here" / "ledger.jsonl").read_text()
    assert there.newest() == snapshot, "a copy stays"
    assert there.get(10).step == 10


async def test_the_files_of_a_store_are_those_of_the_run_folder_below_the_runs_name(tmp_path: Path) -> None:
    await save(make(tmp_path, open_store(f"file://{tmp_path}/store", "tom")), 5)
    here, there = tmp_path / "checkpoints" / "step_000005", tmp_path / "store" / "tom" / "step_000005"
    files = sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert all((here / file).read_bytes() == (there / file).read_bytes() for file in files)


async def test_the_run_folder_counts_when_it_is_as_far_as_the_store(tmp_path: Path) -> None:
    store = faulty_store(tmp_path / "store", calm)
    await save(make(tmp_path, store), 5)
    there = tmp_path / "store" / "step_000005" / "learner" / "rank" / "0.pt"
    there.write_text("damaged")
    kept = make(tmp_path, store)
    snapshot = kept.newest_anywhere()
    assert snapshot is not None
    assert (Path(snapshot.learner) / "rank" / "0.pt").read_text() == "of 5"


async def test_a_damaged_copy_is_not_resumed_from(tmp_path: Path) -> None:
    store = faulty_store(tmp_path / "store", calm)
    await save(make(tmp_path, store), 5)
    (tmp_path / "store" / "step_000005" / "learner" / "rank" / "0.pt").write_text("0f 5")
    with pytest.raises(ValueError, match=r"rank/0\.pt: its sha256 is not the manifest's"):
        make(tmp_path / "other", store).newest_anywhere()
    assert not (tmp_path / "other" / "checkpoints" / "step_000005").exists()


async def test_a_manifest_that_leaves_its_folder_is_refused(tmp_path: Path) -> None:
    store = faulty_store(tmp_path / "store", calm)
    await save(make(tmp_path, store), 5)
    manifest = tmp_path / "store" / "step_000005" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("learner/latest", "../latest"))
    with pytest.raises(ValueError, match=r"names the file \.\./latest"):
        make(tmp_path / "other", store).newest_anywhere()


async def test_what_fails_is_counted_said_and_tried_again_where_it_stopped(tmp_path: Path) -> None:
    tries: list[str] = []

    def fail_twice(operation: str, path: str) -> None:
        if operation == "write" and path.endswith("state.json"):
            tries.append(path)
            if len(tries) <= 2:
                raise OSError("the network is gone")
        elif operation == "write":
            written.append(Path(path).name)

    written: list[str] = []
    kept = make(tmp_path, faulty_store(tmp_path / "store", fail_twice))
    await save(kept, 5)
    sentences, metrics = kept.news()
    assert sentences == [
        "checkpoint step_000005",
        *[f"checkpoint store: step_000005 to {tmp_path}/store: the network is gone"] * 2,
        f"checkpoint step_000005 is in {tmp_path}/store",
    ]
    assert metrics["checkpoint/store_failures"] == 2
    assert metrics["time/checkpoint_background_s"] > 0
    assert written.count("0.pt") == 1, "what had arrived was not sent again"
    assert kept.not_stored is None
    assert kept.news() == ([], {})


async def test_an_upload_that_never_succeeds_is_given_up_and_the_next_one_tried(tmp_path: Path) -> None:
    gone = True

    def fail(operation: str, path: str) -> None:
        if gone:
            raise OSError("no such bucket")

    store = faulty_store(tmp_path / "store", fail)
    kept = make(tmp_path, store, deadline_s=0.05)
    await save(kept, 5)
    sentences, metrics = kept.news()
    assert "upload given up: checkpoint.path: step_000005 is not in" in sentences[-1]
    assert f"step_000005 is complete in {tmp_path}/checkpoints" in sentences[-1]
    assert metrics["checkpoint/store_failures"] >= 1
    assert kept.not_stored is not None
    assert "no such bucket" in kept.not_stored
    assert kept.newest() is not None
    gone = False
    await save(kept, 10)
    assert kept.not_stored is None
    assert store.steps() == [10]


async def test_a_later_process_brings_what_an_earlier_one_could_not(tmp_path: Path) -> None:
    def fail(operation: str, path: str) -> None:
        raise OSError("no route")

    await save(make(tmp_path, faulty_store(tmp_path / "store", fail), deadline_s=0.05), 5)
    store = faulty_store(tmp_path / "store", calm)
    kept = make(tmp_path, store)
    kept.catch_up()
    await kept.settle()
    assert store.steps() == [5]
    kept.news()
    kept.catch_up()
    await kept.settle()
    assert kept.news()[0] == [], "nothing is sent twice"


async def test_a_store_that_hangs_stops_the_run_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("funicular.launch.checkpoint_work.GRACE_S", 0.05)
    forever = threading.Event()

    def hang(operation: str, path: str) -> None:
        forever.wait(60)

    kept = make(tmp_path, faulty_store(tmp_path / "store", hang), deadline_s=0.05)
    await begin(kept, 5)
    with pytest.raises(RunStopped, match=r"step_000005 has not ended after .*checkpoint.deadline_s=0.05.*/store"):
        await begin(kept, 10)
    assert kept.newest() is not None
    forever.set()


def test_a_store_that_does_not_answer_or_cannot_be_written_to_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match=r"checkpoint.path: cannot write to .*/store/run: .*; check the address"):
        make(tmp_path, open_store(str(tmp_path / "store"), "run")).refuse_unwritable()
    monkeypatch.setattr(checkpoints, "STORE_DEADLINE_S", 0.05)
    forever = threading.Event()
    kept = make(tmp_path, faulty_store(tmp_path / "hangs", lambda operation, path: bool(forever.wait(60)) and None))
    with pytest.raises(StoreError, match=r"waited .* for a small file: .*/hangs; is it reachable"):
        kept.refuse_unwritable()
    forever.set()


def test_an_address_that_pyarrow_does_not_know_is_refused_without_showing_credentials() -> None:
    with pytest.raises(StoreError, match=r"checkpoint.path=nope://bucket/x: .*expected a folder, or a URI"):
        open_store("nope://user:secret@bucket/x?token=secret", "run")
    assert shown_address("s3://key:secret@bucket/prefix?region=eu") == "s3://bucket/prefix"
    assert shown_address("s3://bucket/a@b") == "s3://bucket/a@b"
    assert shown_address("folder") == str(Path("folder").absolute())


async def test_the_best_stay_in_the_store_and_a_later_measurement_counts(tmp_path: Path) -> None:
    store = faulty_store(tmp_path / "store", calm)
    kept = make(tmp_path, store, keep_last=1, keep_best=1)
    metric = "eval/held_out/pass_at_1"
    await save(kept, 1, {metric: 0.5})
    await save(kept, 2, {metric: 0.4})
    await save(kept, 3)
    assert store.steps() == [1, 3]
    await kept.measured(3, {metric: 0.6})
    assert store.evaluation(3) == {metric: 0.6}
    assert store.steps() == [3]
    await save(kept, 4)
    assert store.steps() == [3, 4], "what was measured later is the best now"
    assert json.loads((tmp_path / "store" / "step_000003" / "evaluation.json").read_text()) == {metric: 0.6}


async def test_later_steps_are_forgotten_in_the_store_too(tmp_path: Path) -> None:
    store = faulty_store(tmp_path / "store", calm)
    kept = make(tmp_path, store, keep_last=9)
    for step in (1, 2, 3):
        await save(kept, step)
    await kept.forget_after(1)
    assert store.steps() == [1]

    def fail(operation: str, path: str) -> None:
        raise OSError("read only")

    kept = make(tmp_path, faulty_store(tmp_path / "store", fail))
    with pytest.raises(RunStopped, match=r"cannot delete step_000001 of .*read only.*They are void"):
        await kept.forget_after(0)


async def test_training_goes_on_while_a_checkpoint_is_uploaded_and_the_next_save_waits_for_it(tmp_path: Path) -> None:
    go = threading.Event()

    def slow(operation: str, path: str) -> None:
        if "step_000005" in path:
            assert go.wait(60)

    store = faulty_store(tmp_path / "store", slow)
    kept = make(tmp_path, store)
    await begin(kept, 5)
    await kept.sealed()
    assert kept.newest() is not None, "complete here"
    assert store.steps() == [], "not there yet"
    assert kept.news()[1] == {}, "it has not ended"
    threading.Timer(0.2, go.set).start()
    began = time.monotonic()
    await begin(kept, 10)
    assert go.is_set(), f"after {time.monotonic() - began:.1f} s"
    assert 5 in store.steps(), "one at a time"
    await kept.settle()
