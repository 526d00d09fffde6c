"""How much the controller costs, and how far it scales: `python -m tests.bench.simulation [--times FILE]`.

The real loop, accounts, ledger, rollout buffer, routing and weight sync, in one process; generators, scorers and the
learner only take their time (`simulated_parts.py`). For 1, 8, 64 and 512 generators, two runs each:

    as measured   parts take what they took in a real run, `speed` times as fast where there are few generators
    saturated     parts answer at once: what the controller can do at most

A batch grows with the generators, 8 groups for each, and the learner with it. CPU is that of the whole process, the
simulated parts' own coroutines included. Ray is not in it: its calls, three a group (generate, score, fill), cost
the driver besides; `--ray` measures how many a second it makes to actors that answer at once.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funicular.actors.buffers import RolloutBuffer
from funicular.actors.config import AlgorithmConfig
from funicular.actors.generators import Generators
from funicular.actors.scorer import ErrorStreaks
from funicular.actors.scorers import Scorers
from funicular.actors.weight_sync import WeightSync
from funicular.cluster.supervise import RestartBudget
from funicular.launch.accounts import Accounts
from funicular.launch.checkpoints import Checkpoints
from funicular.launch.config import CheckpointConfig, Config, EvaluationConfig, TrackingConfig
from funicular.launch.environment import machine_line
from funicular.launch.ledger import Ledger, read_events
from funicular.launch.loop import train
from funicular.launch.run import Run
from funicular.launch.task_order import TaskIterator
from tests.bench.ray_calls import calls_per_s
from tests.bench.simulated_parts import (
    Clock,
    SimulatedGenerator,
    SimulatedLearners,
    SimulatedScorer,
    Times,
    documented_times,
)
from tests.fakes import FakeBufferActor, FakeTracker, fake_tasks

GROUPS_PER_GENERATOR = 8
"""Of one batch; and what one engine completes at the same time."""
SCORERS_PER_GENERATOR = 1
DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One simulated run."""

    generators: int
    groups_per_s: float
    cpu_us_per_group: float
    """Of the process, microseconds."""
    cpu_frac: float
    """CPU seconds over wall seconds."""
    staleness_mean: float
    staleness_max: float
    generator_idle_frac: float
    learner_idle_frac: float
    events_per_fsync: float
    trained_length: float
    """Mean tokens of trained completions."""


class CountingLedger(Ledger):
    """Knows how often it was brought to disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ends: set[int] = set()

    async def durable(self) -> None:
        await super().durable()
        self.ends.add(self.on_disk)


async def simulate(
    times: Times, folder: Path, *, generators: int, speed: float, steps: int, max_staleness: int = 1, seed: int = 0
) -> Outcome:
    """Run the real controller over simulated parts."""
    clock = Clock(times, speed, seed)
    learners = SimulatedLearners(clock)
    ledger = CountingLedger(folder / "ledger.jsonl")
    tracker = FakeTracker()
    config = Config(
        max_steps=steps,
        max_staleness=max_staleness,
        seed=seed,
        algorithm=AlgorithmConfig(
            group_size=len(times.groups[0].lengths_G), groups_per_step=GROUPS_PER_GENERATOR * generators
        ),
        evaluation=EvaluationConfig(tasks=0),
        checkpoint=CheckpointConfig(every=0),
        tracking=TrackingConfig(mlflow=False, completions_every=0, traces_per_step=0),
    )
    run = await _run(config, clock, learners, ledger, tracker, folder, generators)
    cpu, began = time.process_time(), time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        await train(run)
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    groups = steps * config.algorithm.groups_per_step
    events = sum(1 for _ in read_events(ledger.path))
    ledger.close()
    lines = [line for _, line in tracker.lines if "time/step_s" in line][1:]  # the first waits for the first groups

    def mean(name: str) -> float:
        return statistics.fmean(line[name] for line in lines)

    return Outcome(
        generators=generators,
        groups_per_s=groups / wall,
        cpu_us_per_group=1e6 * cpu / groups,
        cpu_frac=cpu / wall,
        staleness_mean=mean("async/staleness_mean"),
        staleness_max=max(line["async/staleness_max"] for line in lines),
        generator_idle_frac=mean("perf/generator_idle_frac"),
        learner_idle_frac=mean("perf/learner_idle_frac"),
        events_per_fsync=events / len(ledger.ends),
        trained_length=statistics.fmean(learners.trained_lengths),
    )


async def _run(
    config: Config,
    clock: Clock,
    learners: SimulatedLearners,
    ledger: Ledger,
    tracker: FakeTracker,
    folder: Path,
    count: int,
) -> Run:
    budget = RestartBudget(0)
    generators = Generators(
        lambda name: SimulatedGenerator(name, clock, GROUPS_PER_GENERATOR),
        count=count,
        start_deadline_s=DEADLINE_S,
        install_deadline_s=DEADLINE_S,
        budget=budget,
        kill_actor=lambda actor: None,
        cancel_call=lambda call: None,
    )
    await generators.start()
    scorers = Scorers(
        lambda name: SimulatedScorer(clock),
        count=count * SCORERS_PER_GENERATOR,
        deadline_s=DEADLINE_S,
        streaks=ErrorStreaks(10),
        budget=budget,
        kill_actor=lambda actor: None,
    )
    tasks = fake_tasks(4096)
    (folder / "checkpoints").mkdir()
    return Run(
        config=config,
        accounts=Accounts(ledger, TaskIterator(tasks, config.seed), {task.task_id: task for task in tasks}),
        generators=generators,
        scorers=scorers,
        learners=learners,
        weights=WeightSync(learners, generators, attempts=1),
        checkpoints=Checkpoints(folder / "checkpoints", config.checkpoint, None),
        tracker=tracker,  # type: ignore[arg-type]
        budget=budget,
        held_out=[],
        make_buffer=lambda released: RolloutBuffer(
            max_staleness=config.max_staleness,
            groups_per_step=config.algorithm.groups_per_step,
            budget=budget,
            released=released,
            deadline_s=DEADLINE_S,
            make_actor=FakeBufferActor,
            kill_actor=lambda actor: None,
        ),
    )


def run_once(times: Times, **options: Any) -> Outcome:
    """One simulated run in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="funicular-simulation-") as folder:
        return asyncio.run(simulate(times, Path(folder), **options))


HEAD = (
    "generators  speed  groups/s  CPU us/group  CPU/wall  staleness mean/max  idle: generators  learner  events/fsync"
)


def row(speed: float, outcome: Outcome) -> str:
    """One line under HEAD."""
    shown = f"{speed:g}" if speed else "max"
    staleness = f"{outcome.staleness_mean:.2f} / {outcome.staleness_max:g}"
    return (
        f"{outcome.generators:>10}  {shown:>5}  {outcome.groups_per_s:>8.0f}  {outcome.cpu_us_per_group:>12.0f}  "
        f"{outcome.cpu_frac:>8.2f}  {staleness:>18}  {outcome.generator_idle_frac:>16.2f}  "
        f"{outcome.learner_idle_frac:>7.2f}  {outcome.events_per_fsync:>12.1f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, help="what measured_times.py wrote, instead of documented means")
    parser.add_argument("--max-staleness", type=int, default=1)
    parser.add_argument("--groups", type=int, default=12_000, help="of each run, about")
    parser.add_argument("--ray", action="store_true", help="measure Ray's calls instead")
    options = parser.parse_args()
    if options.ray:
        print(f"{machine_line()}\nRay calls a second, three of which a group takes: {calls_per_s():.0f}")
        return
    times = documented_times() if options.times is None else Times.read(options.times)
    print(machine_line())
    print(f"times of {times.source}; max_staleness={options.max_staleness}")
    for name, speeds in (
        ("as measured", {1: 100, 8: 20, 64: 4, 512: 1}),
        ("saturated", dict.fromkeys((1, 8, 64, 512), 0)),
    ):
        print(f"\n{name}\n{HEAD}")
        for count, speed in speeds.items():
            steps = max(4, options.groups // (GROUPS_PER_GENERATOR * count))
            if speed:
                steps = max(4, steps // 4)
            outcome = run_once(times, generators=count, speed=speed, steps=steps, max_staleness=options.max_staleness)
            print(row(speed, outcome), flush=True)


if __name__ == "__main__":
    main()
