"""What a finished run cost, from its metrics.jsonl: `python tests/bench/run_costs.py RUN_DIR`.

Prints means over all steps but the first, which pays for warming up, and how far weight sync is from copying memory.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from funicular.launch.hardware import copy_bandwidth
from funicular.launch.metrics_file import read_metrics

NAMES = (
    "time/wait_groups_s",
    "time/generate_s",
    "time/score_s",
    "time/learn_s",
    "time/weight_sync_s",
    "time/step_s",
    "perf/tokens_per_s",
    "perf/generator_idle_frac",
    "perf/learner_idle_frac",
    "perf/learner_memory_gib",
    "mismatch/logprob_abs_mean",
    "sync/pack_s",
    "sync/paused_s",
    "sync/load_s",
    "sync/verify_s",
    "sync/canary_error",
)


def main(run_dir: Path) -> None:
    """Print the table."""
    steps = [line for line in read_metrics(run_dir / "metrics.jsonl") if "time/step_s" in line]
    if len(steps) < 2:
        sys.exit(f"{run_dir}: {len(steps)} steps in metrics.jsonl; at least 2 are needed")
    print(f"{run_dir}: {len(steps)} steps; means over steps 2 to {len(steps)}, and the largest")
    for name in NAMES:
        values = [line[name] for line in steps[1:] if name in line]
        if values:
            print(f"  {name:<28} {statistics.fmean(values):10.4f} {max(values):10.4f}")
    loads = [line for line in steps[1:] if "sync/load_s" in line]
    if loads:
        rate = statistics.fmean(line["sync/bytes"] / line["sync/load_s"] / 1e9 for line in loads)
        limit = copy_bandwidth()
        print(f"  weights in place: {loads[0]['sync/bytes'] / 1e6:.0f} MB at {rate:.2f} GB/s; ", end="")
        print(f"memory copies at {limit:.2f} GB/s here: {100 * rate / limit:.0f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
