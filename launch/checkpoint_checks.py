"""Rules of section `checkpoint`: what types cannot say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from funicular.launch.addresses import is_uri
from funicular.launch.config import Config
from funicular.launch.config_values import problem_at
from funicular.launch.problems import Problem


def checkpoint_problems(config: Config) -> Iterator[Problem]:
    """What makes a run impossible. Whether the store can be written to is asked later, when a run starts."""
    checkpoint, evaluation = config.checkpoint, config.evaluation
    path = checkpoint.path
    if path is not None and (not path.strip() or (not is_uri(path) and Path(path).expanduser().is_file())):
        expected = "expected a folder, or a URI such as s3://bucket/prefix"
        yield problem_at(config, "checkpoint.path", expected, "null keeps checkpoints in the run folder only")
    if path is not None and unfit_for_a_folder(config.name):
        expected = "expected a word that can name a folder, because checkpoints are kept in checkpoint.path/NAME"
        yield problem_at(config, "name", expected, "", "checkpoint.path")
    if checkpoint.keep_best > 0 and not (evaluation.every and evaluation.tasks):
        expected = "without evaluations during training no checkpoint is measured"
        nearest = "Set evaluation.every and evaluation.tasks above 0, or keep_best=0"
        yield problem_at(config, "checkpoint.keep_best", expected, nearest, "evaluation.every", "evaluation.tasks")
    if not checkpoint.best_metric.startswith("eval/"):
        expected = "expected a metric of an evaluation"
        yield problem_at(config, "checkpoint.best_metric", expected, "Its default is eval/held_out/pass_at_1")


def doubtful_checkpoints(config: Config) -> Iterator[Problem]:
    """What is possible, but probably not meant."""
    every, evaluation = config.checkpoint.every or config.max_steps, config.evaluation.every
    if config.checkpoint.keep_best and evaluation and math.lcm(every, evaluation) > config.max_steps:
        expected = f"no checkpoint falls on an evaluation (every {evaluation} steps), so none is measured"
        nearest = f"Set checkpoint.every={evaluation}, or a multiple of it"
        yield problem_at(config, "checkpoint.every", expected, nearest, "evaluation.every", "checkpoint.keep_best")


def unfit_for_a_folder(name: str) -> bool:
    """Whether a folder cannot have this name."""
    return not name.strip() or name in (".", "..") or "/" in name
