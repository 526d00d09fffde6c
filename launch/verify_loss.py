"""`funicular verify loss`: one optimizer batch of a recipe, cut in several ways, against a plain float64 gradient."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from funicular.actors.distillation_config import distils
from funicular.actors.types import GenerationRecord, GroupPayload
from funicular.cluster.calls import DeadlineExceeded, call
from funicular.cluster.session import Demand, connect, disconnect
from funicular.launch import certificate_batch
from funicular.launch.certificate import Certificate
from funicular.launch.certificate_cuts import MOST_RANKS
from funicular.launch.certificate_runs import Files, PlainRun, cut_rows, say
from funicular.launch.config import Config
from funicular.launch.environment import machine_line
from funicular.launch.image_checks import refuse_vision_model
from funicular.launch.local_scoring import local_runner
from funicular.launch.models import EMBEDDED, resolve_model
from funicular.launch.recipe import LoadedRecipe
from funicular.launch.tasks import load_tasks
from funicular.launch.verify_options import VerifyOptions
from funicular.rewards.types import Task, Verdict

if TYPE_CHECKING:
    from funicular.actors.gradient_probe import ProbedRank

PASSED, FAILED, WRONG_INPUT = 0, 1, 2
_OBJECT_STORE_GIB = 0.2


def verify_loss(loaded: LoadedRecipe, options: VerifyOptions, rank_class: type[ProbedRank] | None = None) -> int:
    """Make the certificate and print it; the exit status.

    Args:
        rank_class: what stands for a learner rank; None: ProbedRank, the real one. Faulty ones are for tests.
    """
    from ray.exceptions import RayActorError

    try:
        if options.json_file is not None and not options.json_file.parent.is_dir():
            raise ValueError(f"--json {options.json_file}: there is no folder {options.json_file.parent}")
        certificate = asyncio.run(_certificate(loaded, options, rank_class))
    except (DeadlineExceeded, RayActorError) as error:  # first: a deadline is an OSError too
        print(f"no certificate: {error}", file=sys.stderr)
        return FAILED
    except (ValueError, OSError) as error:  # how every part refuses what a user gave
        print(f"error: {error}", file=sys.stderr)
        return WRONG_INPUT
    return finish(certificate, options.json_file)


def finish(certificate: Certificate, json_file: Path | None) -> int:
    """Print it, and write it; the exit status."""
    print(certificate.text())
    if json_file is not None:
        json_file.write_text(json.dumps(certificate.record(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return PASSED if certificate.verdict == "PASS" else FAILED


async def _certificate(
    loaded: LoadedRecipe, options: VerifyOptions, rank_class: type[ProbedRank] | None
) -> Certificate:
    config = _one_optimizer_batch(loaded.config, options)
    reward = config.reward
    tasks = load_tasks(config.data, reward.verifier, config.seed, verifier_options=reward.verifier_options)
    say("starting Ray")
    try:
        connect(
            replace(config.cluster, address="local", use_gpu=False, object_store_gib=_OBJECT_STORE_GIB),
            Demand(cpus=MOST_RANKS + 1, gpus=0),
        )
        with tempfile.TemporaryDirectory(prefix="funicular-verify-") as scratch:
            folder, model = await _model(config, options, Path(scratch) / "model")
            files = Files(model=folder, gradient=Path(scratch) / "gradient.safetensors")
            plain = PlainRun(config, files)
            drawn, sampled = await plain.sample(tasks.iterator(config.seed), options)
            verdicts, rewards = _verdicts(loaded, options, drawn, sampled)
            groups, payloads = certificate_batch.make_groups(drawn, sampled, verdicts)
            in_float32 = await plain.gradient(groups, payloads)
            plain.close()
            rows = [in_float32, *await cut_rows(config, files, groups, payloads, rank_class)]
    finally:
        disconnect()
    facts = {
        "recipe": " ".join(loaded.sources),
        "model": model,
        "loss": f"{config.algorithm.loss}, {'adapters' if config.learner.lora_rank else 'all parameters'}",
        "batch": certificate_batch.describe(groups, payloads),
        "rewards": rewards,
        "policy": "the model with noise of 0.3 % in each trained parameter, as after some updates",
        "expected": f"float64, one row at a time, all logits at once: norm {plain.norm:.3e}, {plain.seconds:.0f} s",
        "machine": machine_line(),
    }
    return Certificate(facts=facts, rows=rows)


def _one_optimizer_batch(config: Config, options: VerifyOptions) -> Config:
    """The recipe with a training batch that makes one optimizer step, and nothing that changes from step to step.

    Raises:
        ValueError: there is a teacher.
    """
    if distils(config.distillation):
        raise ValueError(
            "distillation: certificates are of losses from rewards; teachers and given tokens have none yet"
        )
    algorithm = replace(
        config.algorithm,
        optimizer_batches=1,
        num_iterations=1,
        groups_per_step=options.tasks,
        group_size=options.completions,
        reference_refresh_steps=0,
        entropy_target=None,
    )
    return replace(config, algorithm=algorithm)


async def _model(config: Config, options: VerifyOptions, target: Path) -> tuple[Path, str]:
    """The folder of the model, and what it is."""
    import ray

    from funicular.actors.small_models import cut_layers, random_model

    deadline_s = config.learner.start_deadline_s
    if options.random_tiny is not None:
        tokenizer = resolve_model(EMBEDDED, say)
        task = ray.remote(random_model).remote(options.random_tiny, tokenizer, config.seed, target)
        what = await call(task, deadline_s=deadline_s, what="a random model to be made")
        return target, f"{what}, NOT {config.model.path}"
    folder = resolve_model(config.model.path, say)
    refuse_vision_model(config, folder)
    if options.layers is not None:
        task = ray.remote(cut_layers).remote(folder, options.layers, target)
        what = await call(task, deadline_s=deadline_s, what="the model to be cut")
        return target, f"{config.model.path}, {what}"
    return folder, config.model.path


def _verdicts(
    loaded: LoadedRecipe,
    options: VerifyOptions,
    tasks: Sequence[Task],
    sampled: Sequence[tuple[GenerationRecord, GroupPayload]],
) -> tuple[list[list[Verdict]], str]:
    """Of each completion, and where they come from."""
    config = loaded.config
    if not options.score:
        drawn = certificate_batch.draw_verdicts(
            options.tasks, options.completions, config.algorithm, config.reward, config.seed
        )
        return drawn, f"drawn by chance (seed {config.seed}), not by {config.reward.verifier}"
    found = []
    with local_runner(config, loaded.folder) as runner:
        for task, (_, payload) in zip(tasks, sampled, strict=True):
            ids = [payload.token_ids[payload.completion(i)].tolist() for i in range(len(payload.texts))]
            verdicts, raised = runner.score(task, list(payload.texts), ids)
            if raised:
                raise ValueError("; ".join(f"{name} raised: {text}" for name, text in raised.items()))
            found.append(verdicts)
    return found, f"by the recipe: verifier {config.reward.verifier}, functions {', '.join(config.reward.functions)}"
