"""`funicular eval`: pass@k and rewards of a model folder, through the generators and scorers of a run."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ray.exceptions import RayError

from funicular.actors.errors import RunStopped, first_line
from funicular.actors.sampling import seed_of
from funicular.actors.types import GenerationRequest
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.roles import GENERATOR, LEARNER, role_resources
from funicular.cluster.session import Demand, Session, connect, disconnect
from funicular.cluster.supervise import RestartBudget, RestartBudgetSpent
from funicular.launch.build import make_generators, make_scorers, start_pools
from funicular.launch.config import Config
from funicular.launch.eval_options import EvalOptions
from funicular.launch.eval_report import EvalReport, TaskResult, report_of
from funicular.launch.evaluate import Judged, complete_and_score
from funicular.launch.image_checks import refuse_unfit_for_images
from funicular.launch.local_scoring import check_loading
from funicular.launch.models import resolve_model
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.tasks import TaskSet, load_tasks
from funicular.rewards.types import Task

if TYPE_CHECKING:
    from funicular.actors.generators import Generators
    from funicular.actors.scorers import Scorers

EVALUATED, FAILED, WRONG_INPUT = 0, 1, 2
_VERSION = 0
"""The folder's weights are published once."""
_PAYLOAD_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What is to be done, checked."""

    config: Config
    recipe_folder: Path
    model_folder: Path
    task_set: str
    tasks: tuple[Task, ...]
    completions: int
    temperature: float
    ks: tuple[int, ...]


def eval_model(loaded: LoadedRecipe, options: EvalOptions) -> int:
    """Evaluate and print; the exit status: 0, 1 if it could not be done to the end, 2 for wrong input."""
    output = options.output or Path(f"eval-{loaded.config.name}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl")
    try:
        work = _prepare(loaded, options)
        with output.open("w", encoding="utf-8") as lines:
            report = asyncio.run(_evaluate(work, lines))
        if options.json_file is not None:
            options.json_file.write_text(json.dumps(report.record(), indent=1) + "\n", encoding="utf-8")
    except (RunStopped, RestartBudgetSpent, DeadlineExceeded) as error:  # first: a deadline is an OSError too
        print(f"not evaluated: {error}", file=sys.stderr)
        return FAILED
    except (ValueError, OSError) as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    print(report.text())
    print(f"\ncompletions and verdicts: {output}")
    return FAILED if report.not_judged else EVALUATED


def _prepare(loaded: LoadedRecipe, options: EvalOptions) -> _Work:
    """Everything that can be wrong with the input and is cheap to find out."""
    config, reward = loaded.config, loaded.config.reward
    config = replace(config, weight_sync=replace(config.weight_sync, lora="merged"))  # a folder has whole weights
    completions = options.completions or max(options.ks)
    if completions < max(options.ks):
        raise ValueError(f"--completions {completions}: pass@{max(options.ks)} needs at least {max(options.ks)}")
    temperature = options.temperature
    if temperature is None:
        temperature = config.evaluation.temperature
        if completions > 1 and temperature == 0:  # greedy completions of a task are all the same
            temperature = config.generator.temperature
    if temperature < 0 or (temperature == 0 and completions > 1):
        expected = "above 0, for completions that differ" if completions > 1 else "0 or more"
        raise ValueError(f"temperature {temperature:g}: expected {expected}; give --temperature")
    found = load_tasks(config.data, reward.verifier, config.seed, verifier_options=reward.verifier_options)
    tasks = _chosen(found, options, config)
    check_loading(reward, loaded.folder)
    model_folder = resolve_model(config.model.path, _say)
    refuse_unfit_for_images(config, tasks, model_folder)
    return _Work(
        config=config,
        recipe_folder=loaded.folder,
        model_folder=model_folder,
        task_set=options.task_set,
        tasks=tasks,
        completions=completions,
        temperature=temperature,
        ks=options.ks,
    )


def _chosen(found: TaskSet, options: EvalOptions, config: Config) -> tuple[Task, ...]:
    sets = {"held_out": found.held_out, "train": found.train, "all": (*found.train, *found.held_out)}
    there = sets[options.task_set]
    if not there:
        raise ValueError(
            f"--set {options.task_set}: the recipe holds out no tasks; give --set train, or set data.held_out_path or "
            "data.held_out_fraction"
        )
    return found.some_of(there, options.tasks or config.evaluation.tasks or len(there))


async def _evaluate(work: _Work, lines: TextIO) -> EvalReport:
    config = work.config
    try:
        _say("starting Ray")
        session = connect(config.cluster, _demand(config))
        pools = await start_pools(config, work.tasks, _say)
        budget = RestartBudget(config.cluster.max_restarts)
        scorers = make_scorers(config, work.recipe_folder, pools, budget, completions=work.completions)
        generators = make_generators(config, work.model_folder, budget, use_gpu=session.use_gpu, roles=session.roles)
        _say("starting generators")
        await generators.start()
        _say("publishing the folder's weights")
        await _publish(work, generators, session)
        _say(f"completing {len(work.tasks)} tasks")
        began = time.monotonic()
        results = await _complete_all(work, generators, scorers, lines)
        seconds = time.monotonic() - began
    finally:
        disconnect()
    return report_of(
        results,
        model=str(work.model_folder),
        task_set=work.task_set,
        tasks=len(work.tasks),
        completions=work.completions,
        temperature=work.temperature,
        ks=work.ks,
        seconds=seconds,
    )


def _demand(config: Config) -> Demand:
    """A CPU, and a GPU where there are GPUs, for each engine worker; a CPU for each scorer and for packing weights."""
    workers = config.generator.count * config.generator.tensor_parallel_size
    roles = {GENERATOR: workers, LEARNER: 1}
    return Demand(cpus=workers + config.reward.scorers + 1, gpus=workers, roles=roles)


async def _publish(work: _Work, generators: Generators, session: Session) -> None:
    """Have the generators serve the folder's weights, verified as a run's are."""
    import ray

    from funicular.actors.folder_weights import FolderSource, folder_weights_actor
    from funicular.actors.weight_sync import WeightSync

    config = work.config
    actor = (
        folder_weights_actor()
        .options(num_cpus=1, resources=role_resources(LEARNER, 1, session.roles))
        .remote(str(work.model_folder), dtype=config.generator.dtype)
    )
    source = FolderSource(actor, config.weight_sync, deadline_s=config.learner.start_deadline_s)
    await WeightSync(source, generators, attempts=config.weight_sync.attempts).publish(_VERSION)
    ray.kill(actor)  # its copy of the model is in nobody's way


async def _complete_all(work: _Work, generators: Generators, scorers: Scorers, lines: TextIO) -> list[TaskResult]:
    """Complete and score every task; writes each one's lines as soon as they are known."""
    generator = work.config.generator
    # Enough to keep the engines full; each group waits with all its completions.
    places = asyncio.Semaphore(generator.count * max(2, 2 * generator.max_sequences // work.completions))
    done = 0

    async def one(task: Task, index: int) -> TaskResult | None:
        nonlocal done
        request = GenerationRequest(
            group_id=f"e-{index}",
            task=task,
            count=work.completions,
            temperature=work.temperature,
            seed=seed_of(work.config.seed, task.task_id, "evaluation") if generator.request_seeds else None,
        )
        async with places:
            judged = await complete_and_score(generators, scorers, request, _say)
            result = None if judged is None else await _result(task, judged)
        if result is not None:
            lines.write(result.lines())
            lines.flush()
        done += 1
        if done % max(1, len(work.tasks) // 10) == 0:
            _say(f"{done} of {len(work.tasks)} tasks")
        return result

    results = await asyncio.gather(*(one(task, index) for index, task in enumerate(work.tasks)))
    return [result for result in results if result is not None]


async def _result(task: Task, judged: Judged) -> TaskResult | None:
    """None: the completions are lost, with the node that had them."""
    try:
        payload = await call(judged.payload, deadline_s=_PAYLOAD_DEADLINE_S, what=f"completions of {task.task_id}")
    except RayError as error:
        _say(f"evaluation: task {task.task_id} not judged: {first_line(error)}")
        return None
    return TaskResult(
        task=task,
        texts_G=payload.texts,
        lengths_G=judged.generation.lengths_G,
        truncated_G=judged.generation.truncated_G,
        verdicts_G=judged.verdicts_G,
    )


def _say(sentence: str) -> None:
    print(f"{sentence} ...", file=sys.stderr, flush=True)
