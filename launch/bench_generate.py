"""`funicular bench generate`: tokens a second of a recipe's generator, against what memory and arithmetic allow."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.session import Demand, connect, disconnect
from funicular.launch.config import Config
from funicular.launch.environment import machine_line
from funicular.launch.models import resolve_model
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.tasks import load_tasks
from funicular.rewards.types import Task

if TYPE_CHECKING:
    from funicular.actors.benched_engine import Limits, Round, Size
    from funicular.launch.generation_bound import Bound

MEASURED, FAILED, WRONG_INPUT = 0, 1, 2
LIMITS_DEADLINE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one engine did, and what its hardware can do."""

    limits: Limits
    size: Size
    rounds: Sequence[Round]
    bounds: Sequence[Bound]

    @property
    def tokens_per_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(r.sequences * r.tokens / r.seconds for r in self.rounds)

    @property
    def fraction(self) -> float:
        """Of the bound, median of the rounds."""
        return statistics.median(b.seconds / r.seconds for r, b in zip(self.rounds, self.bounds, strict=True))


def bench_generate(loaded: LoadedRecipe, rounds: int, tokens: int | None, json_file: Path | None) -> int:
    """Measure and print; the exit status.

    Args:
        tokens: length of completions; None: generator.max_completion_tokens.
    """
    from ray.exceptions import RayActorError

    config = loaded.config
    length = tokens or config.generator.max_completion_tokens
    try:
        if length < 2 or length > config.generator.max_completion_tokens:
            limit = config.generator.max_completion_tokens
            raise ValueError(f"--tokens {length}: expected 2 to generator.max_completion_tokens={limit}")
        measured = asyncio.run(_measure(config, rounds, length))
    except (DeadlineExceeded, RayActorError) as error:  # first: a deadline is an OSError too
        print(f"not measured: {error}", file=sys.stderr)
        return FAILED
    except (ValueError, OSError) as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    print(table(config, measured))
    if json_file is not None:
        json_file.write_text(json.dumps(record(config, measured), indent=1) + "\n", encoding="utf-8")
    return MEASURED


async def _measure(config: Config, rounds: int, tokens: int) -> Measured:
    from funicular.actors.benched_engine import benched_engine_actor
    from funicular.launch.generation_bound import bound_of

    generator, reward = config.generator, config.reward
    per_task = min(config.algorithm.group_size, generator.max_sequences)
    at_once = generator.max_sequences // per_task
    tasks = load_tasks(config.data, reward.verifier, config.seed, verifier_options=reward.verifier_options)
    iterator = tasks.iterator(config.seed)
    drawn: list[list[Task]] = [[iterator.next() for _ in range(at_once)] for _ in range(rounds + 1)]
    folder = resolve_model(config.model.path, _say)
    workers = generator.tensor_parallel_size
    try:
        _say("starting Ray")
        session = connect(config.cluster, Demand(cpus=workers, gpus=workers))
        engine: Any = (
            benched_engine_actor()
            .options(num_cpus=workers, num_gpus=workers if session.use_gpu else 0)
            .remote(
                generator,
                config.weight_sync,
                model_folder=str(folder),
                chat_template=config.model.chat_template,
                use_gpu=session.use_gpu,
            )
        )
        _say("measuring memory and arithmetic")
        limits = await call(engine.limits.remote(), deadline_s=LIMITS_DEADLINE_S, what="memory and arithmetic")
        _say("starting the engine")
        deadline_s = generator.start_deadline_s
        size = await call(engine.start.remote(), deadline_s=deadline_s, what="the engine's start")
        done: list[Round] = []
        for number, some in enumerate(drawn):
            _say(f"round {number} of {rounds}" if number else "a first round, to warm up")
            work = engine.run.remote(some, per_task, tokens)
            done.append(await call(work, deadline_s=deadline_s, what=f"round {number}"))
    finally:
        disconnect()
    bounds = [bound_of(one, size, limits) for one in done[1:]]
    return Measured(limits=limits, size=size, rounds=done[1:], bounds=bounds)


def table(config: Config, measured: Measured) -> str:
    """What was measured, as text."""
    limits, size, first = measured.limits, measured.size, measured.rounds[0]
    bound, generator = measured.bounds[0], config.generator
    parameters = size.body_parameters + size.head_parameters
    pairs = list(zip(measured.rounds, measured.bounds, strict=True))
    rows: list[tuple[str, float, float | None]] = [
        ("measured", statistics.median(r.seconds for r in measured.rounds), measured.tokens_per_s),
        (
            f"bound, by {bound.binding}",
            statistics.median(b.seconds for b in measured.bounds),
            statistics.median(r.sequences * r.tokens / b.seconds for r, b in pairs),
        ),
        ("  prompts", bound.prefill_s, None),
        ("  decoding: reading memory", bound.memory_s, None),
        ("  decoding: arithmetic", bound.arithmetic_s, None),
    ]
    lines = [
        f"machine   {machine_line()}",
        f"command   funicular bench generate {' '.join(sys.argv[3:])}".rstrip(),
        f"model     {config.model.path}, {generator.dtype}: {parameters / 1e6:.1f} million parameters a token, "
        f"{parameters * size.parameter_bytes / 1e6:.0f} MB a step; "
        f"cache {size.cache_bytes_per_token / 1e3:.1f} kB a token",
        f"engine    one of {generator.count}, workers: {generator.tensor_parallel_size}; {first.sequences} sequences "
        f"of {first.tokens} tokens, {first.sequences // len(first.prompt_tokens)} to a prompt of "
        f"{statistics.fmean(first.prompt_tokens):.0f}",
        f"limits    {limits.bytes_per_s / 1e9:.1f} GB/s read and written by a copy, {limits.flops_per_s / 1e9:.0f} "
        f"GFLOP/s in {generator.dtype} products; measured before the engine started",
        "",
        f"{'median of ' + str(len(pairs)) + ' rounds':<34}{'seconds':>9}{'tokens/s':>10}{'of bound':>10}",
    ]
    for what, seconds, rate in rows:
        share = f"{measured.fraction:>10.0%}" if what == "measured" else ""
        lines.append(f"{what:<34}{seconds:>9.2f}" + (f"{rate:>10.0f}" if rate is not None else "") + share)
    return "\n".join(lines)


def record(config: Config, measured: Measured) -> dict[str, Any]:
    """The same, for programs."""
    return {
        "machine": machine_line(),
        "model": config.model.path,
        "dtype": config.generator.dtype,
        "tokens_per_s": measured.tokens_per_s,
        "fraction_of_bound": measured.fraction,
        "limits": asdict(measured.limits),
        "size": asdict(measured.size),
        "rounds": [asdict(one) for one in measured.rounds],
        "bounds": [asdict(one) for one in measured.bounds],
    }


def _say(sentence: str) -> None:
    print(f"{sentence} ...", file=sys.stderr, flush=True)
