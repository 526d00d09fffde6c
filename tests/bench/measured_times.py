"""Measured times for the simulation, out of a finished run: `python tests/bench/measured_times.py RUN_DIR FILE`.

The run should have `tracking.completions_every=1` and `tracking.completions_rows` of a whole batch: lengths of
completions stand in those tables only. Durations of groups are read off the ledger, where every event has its time.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from funicular.launch.ledger import read_events
from funicular.launch.metrics_file import read_metrics


def group_lengths(run_dir: Path) -> dict[str, list[int]]:
    """Group id to the tokens of its completions."""
    lengths: dict[str, list[int]] = defaultdict(list)
    for table in sorted((run_dir / "logs" / "completions").glob("step_*.jsonl")):
        for line in table.read_text().splitlines():
            row = json.loads(line)
            lengths[row["group_id"]].append(row["tokens"])
    return lengths


def main(run_dir: Path, file: Path) -> None:
    """Write what was found, and say how much."""
    times: dict[str, dict[str, float]] = defaultdict(dict)
    for event in read_events(run_dir / "ledger.jsonl"):
        if event["event"] in ("issued", "generated", "scored"):
            times[event["group"]][event["event"]] = event["time"]
    lengths = group_lengths(run_dir)
    size = max(map(len, lengths.values()), default=0)
    groups = [
        (round(t["generated"] - t["issued"], 3), round(t["scored"] - t["generated"], 3), lengths[group])
        for group, t in times.items()
        if "scored" in t and len(lengths.get(group, ())) == size  # the last of a table may be cut
    ]
    steps = [line for line in read_metrics(run_dir / "metrics.jsonl") if "time/learn_s" in line][1:]
    if not groups or not steps:
        sys.exit(f"{run_dir}: {len(groups)} whole groups in tables of completions, {len(steps)} steps after the first")
    measured = {
        "source": f"{run_dir.name}: {len(groups)} groups, {len(steps)} steps",
        "groups": groups,
        "learn_s": [line["time/learn_s"] for line in steps],
        "pack_s": [line["sync/pack_s"] for line in steps],
        "install_s": [line["sync/load_s"] + line["sync/verify_s"] for line in steps],
    }
    file.write_text(json.dumps(measured) + "\n")
    print(f"{file}: {measured['source']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
