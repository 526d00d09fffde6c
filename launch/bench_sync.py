"""`funicular bench sync`: how fast a recipe's weights reach its generators here, against copying memory."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from funicular.actors.errors import LearnerLost, RunStopped
from funicular.actors.weight_sync import PublishReport
from funicular.cluster.calls import DeadlineExceeded
from funicular.cluster.session import connect, disconnect
from funicular.cluster.supervise import RestartBudget
from funicular.launch.build import demand, make_weight_sync, start_policy
from funicular.launch.config import Config
from funicular.launch.environment import machine_line
from funicular.launch.hardware import copy_bandwidth
from funicular.launch.models import resolve_model
from funicular.launch.recipe import LoadedRecipe

MEASURED, FAILED, WRONG_INPUT = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    what: str
    seconds: Sequence[float]
    """Of each version."""
    nbytes: int | None
    """Moved in that time; None: nothing is moved."""


def bench_sync(loaded: LoadedRecipe, versions: int) -> int:
    """Publish the initial weights again and again, and print what each part took; the exit status."""
    try:
        reports, limit = asyncio.run(_publish(loaded.config, versions))
    except (RunStopped, LearnerLost, DeadlineExceeded) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return FAILED
    except ValueError as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    print(table(loaded, reports, limit))
    return MEASURED


async def _publish(config: Config, versions: int) -> tuple[list[PublishReport], float]:
    """The reports of all versions but the first, which pays for warming up; GB/s of copying memory."""
    model_folder = resolve_model(config.model.path, _say)
    try:
        _say("starting Ray, learner ranks and generators")
        session = connect(config.cluster, demand(config))
        budget = RestartBudget(config.cluster.max_restarts)
        learners, generators = await start_policy(
            config, model_folder, None, budget, use_gpu=session.use_gpu, roles=session.roles
        )
        if generators is None:
            raise ValueError(
                f"data.completion_column={config.data.completion_column}: nothing is generated, so no weights are "
                "sent; set evaluation.tasks=1, or leave the column out"
            )
        sync = make_weight_sync(config, learners, generators)
        reports = []
        for version in range(versions + 1):
            _say(f"publishing {version} of {versions}")
            reports.append(await sync.publish(version))
        return reports[1:], copy_bandwidth()
    finally:
        disconnect()


def table(loaded: LoadedRecipe, reports: Sequence[PublishReport], limit: float) -> str:
    """What was measured, as text; the median of the versions, and the slowest generator of each."""
    config = loaded.config
    metrics = [report.metrics() for report in reports]

    def of(name: str) -> list[float]:
        return [m[name] for m in metrics]

    nbytes = reports[0].total_bytes
    fetched, broadcast = (statistics.median(of(f"sync/{name}_bytes")) for name in ("fetched", "broadcast"))
    count, workers = config.generator.count, config.generator.tensor_parallel_size
    in_place = [load - packing for load, packing in zip(of("sync/load_s"), of("sync/packing_s"), strict=True)]
    rows = [
        Row(what="gather, pack, hash (learner)", seconds=of("sync/pack_s"), nbytes=nbytes),
        Row(what="published buckets to tensors in place", seconds=in_place, nbytes=nbytes),
        Row(what="  beside it: packing for CPU kernels", seconds=of("sync/packing_s"), nbytes=None),
        Row(what="fingerprints and canary", seconds=of("sync/verify_s"), nbytes=None),
        Row(what="generators paused", seconds=of("sync/paused_s"), nbytes=None),
        Row(what="all, until committed", seconds=[report.seconds for report in reports], nbytes=nbytes),
    ]
    lines = [
        f"machine   {machine_line()}",
        f"command   funicular bench sync {' '.join(sys.argv[3:])}".rstrip(),
        f"weights   {config.model.path}, {config.generator.dtype}, {nbytes / 1e6:.0f} MB",
        f"sent to   generators: {count}, engine workers of each: {workers}",
        f"from      learner ranks: {config.learner.ranks}, ZeRO stage {config.learner.zero_stage}",
        f"by        {config.weight_sync.transport}; fetched by each generator {fetched / 1e6:.0f} MB a version, "
        f"{broadcast / 1e6:.0f} of it by broadcast",
        f"memcpy    {limit:.1f} GB/s in one thread on the driver's node, measured after the last version",
        "",
        f"{'median of ' + str(len(reports)) + ' versions':<40}{'seconds':>9}{'fastest':>9}{'GB/s':>8}{'of memcpy':>11}",
        *(_line(row, limit) for row in rows),
    ]
    return "\n".join(lines)


def _line(row: Row, limit: float) -> str:
    seconds = statistics.median(row.seconds)
    line = f"{row.what:<40}{seconds:>9.3f}{min(row.seconds):>9.3f}"
    if row.nbytes is not None and seconds > 0:
        rate = row.nbytes / seconds / 1e9
        line += f"{rate:>8.2f}{rate / limit:>11.0%}"
    return line


def _say(sentence: str) -> None:
    print(f"{sentence} ...", file=sys.stderr, flush=True)
