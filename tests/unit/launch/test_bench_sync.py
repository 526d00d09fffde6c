"""What `funicular bench sync` prints of what it measured."""

from types import SimpleNamespace
from typing import Any

from funicular.actors.weight_sync import PublishReport
from funicular.actors.weights import SyncRecord
from funicular.launch.bench_sync import table
from funicular.launch.config import Config


def report(load: float, packing: float) -> PublishReport:
    record = SyncRecord(
        generator="generator-0",
        version=1,
        paused_seconds=load + 0.2,
        load_seconds=load,
        packing_seconds=packing,
        verify_seconds=0.1,
        total_bytes=2_000_000_000,
        fetched_bytes=500_000_000,
        broadcast_bytes=300_000_000,
        broadcast_broken="",
        canary_error=0.0,
        fingerprints_checked=1,
        columns_checked=1,
    )
    return PublishReport(version=1, records=[record], pack_seconds=1.0, seconds=2.0, total_bytes=2_000_000_000)


def test_the_table_shows_medians_the_fastest_and_the_part_of_memcpy() -> None:
    loaded: Any = SimpleNamespace(config=Config())
    text = table(loaded, [report(0.7, 0.2), report(0.6, 0.2), report(1.2, 0.2)], limit=10.0)
    lines = {line[:40].strip(): line[40:].split() for line in text.splitlines()}
    assert lines["published buckets to tensors in place"] == ["0.500", "0.400", "4.00", "40%"]
    assert lines["beside it: packing for CPU kernels"] == ["0.200", "0.200"]
    assert lines["gather, pack, hash (learner)"] == ["1.000", "1.000", "2.00", "20%"]
    assert "fetched by each generator 500 MB a version, 300 of it by broadcast" in text
