"""A run as a job of a real cluster: token, three nodes with addresses of their own, one of which dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from funicular.launch.ledger import audit, read_events
from tests.node_namespaces import Cluster, cluster, unavailable
from tests.tiny_run import tiny_recipe

STEPS = 40

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head for the generator, two nodes for a learner rank each."""
    if reason := unavailable():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.add("head", cpus=2, resources={"generator": 1})
        made.wait()
        for node in ("first", "second"):
            made.add(node, cpus=2, resources={"learner": 1})
        made.wait()
        yield made


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe(tmp_path_factory.mktemp("recipe"))


def run(nodes: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of a user of the cluster, in the recipe's folder."""
    return subprocess.run(
        words, cwd=folder, env=nodes.environment, capture_output=True, text=True, timeout=600, check=False
    )


def funicular(nodes: Cluster, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run(nodes, folder, sys.executable, "-m", "funicular.launch.cli", *words, "--address", nodes.dashboard)


def overrides(recipe: Path) -> list[str]:
    shape = ["learner.ranks=2", "learner.zero_stage=2", "evaluation.tasks=0", "max_staleness=1"]
    return [f"run_dir={recipe.parent}/run", f"max_steps={STEPS}", "learner.start_deadline_s=300", *shape]


def wait_for_step(nodes: Cluster, ledger: Path, step: int, deadline_s: float = 400) -> None:
    limit = time.monotonic() + deadline_s
    while max(trained(ledger), default=0) < step:
        assert time.monotonic() < limit, f"step {step} was not trained within {deadline_s} s: {nodes.logs()}"
        time.sleep(0.2)


def trained(ledger: Path) -> list[int]:
    return [event["step"] for event in read_events(ledger) if event["event"] == "trained"] if ledger.exists() else []


def parts(nodes: Cluster, node: str) -> set[str]:
    """Names of the actors on a node, as Ray gives them to their processes."""
    pids = nodes.pids(node)
    processes = [process for process in psutil.process_iter(["cmdline"]) if process.pid in pids]
    titles = [" ".join(process.info["cmdline"] or ()) for process in processes]
    return {title.removeprefix("ray::").partition(".")[0].strip() for title in titles if title.startswith("ray::")}


def test_a_submitted_run_is_stopped_resumed_and_outlives_a_node(nodes: Cluster, recipe: Path) -> None:
    folder, ledger = recipe.parent, recipe.parent / "run" / "ledger.jsonl"
    # HF_* is what the driver hands to its actors too: no conflict with the job's own variables
    submit = ["submit", "-c", recipe.name, *overrides(recipe), "--env", "HF_HUB_OFFLINE=1"]

    first = json_of(funicular(nodes, folder, *submit, "--json"))
    wait_for_step(nodes, ledger, 2)
    assert "GeneratorActor" in parts(nodes, "head")
    assert "LearnerRank" in parts(nodes, "first") & parts(nodes, "second") - parts(nodes, "head")

    stopped = json_of(funicular(nodes, folder, "stop", "--json"))
    assert (stopped["job"], stopped["status"], stopped["killed"]) == (first["job"], "STOPPED", False)
    saved = max(trained(ledger))
    assert saved < STEPS
    assert (folder / "run" / "checkpoints" / f"step_{saved:06d}" / "manifest.json").is_file()

    json_of(funicular(nodes, folder, *submit, "--json"))
    wait_for_step(nodes, ledger, saved + 2)
    nodes.kill("second")
    nodes.add("third", cpus=2, resources={"learner": 1})  # as whoever keeps up the cluster would
    followed = funicular(nodes, folder, "logs", "--follow")
    assert followed.returncode == 0, followed.stdout[-3000:] + followed.stderr[-3000:]
    assert f"goes on from step {saved}" in followed.stdout
    assert [job["status"] for job in json_of(funicular(nodes, folder, "status", "--json"))] == ["STOPPED", "SUCCEEDED"]
    assert "rolled_back" in {event["event"] for event in read_events(ledger)}
    account = audit(ledger)
    assert account.problems == []
    assert sorted(account.trained_tasks) == list(range(1, STEPS + 1))
    assert (folder / "run" / "model" / "config.json").is_file()


def test_an_engine_that_no_node_can_hold_is_refused_with_a_table(nodes: Cluster, recipe: Path) -> None:
    shape = [f"run_dir={recipe.parent}/refused", "generator.tensor_parallel_size=2", "evaluation.tasks=0"]
    refused = funicular(nodes, recipe.parent, "submit", "-c", recipe.name, *shape, "--follow")
    assert refused.returncode == 2, refused.stdout[-3000:] + refused.stderr[-3000:]
    assert "generator engines of 2 on one node each  asked    1  there    0  missing    1" in refused.stdout


def test_plain_ray_job_submit_takes_the_same_recipe(nodes: Cluster, recipe: Path) -> None:
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "900"}})
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", nodes.dashboard]
    ray += ["--working-dir", ".", "--runtime-env-json", environment, "--"]
    done = run(nodes, recipe.parent, *ray, "funicular", "train", "-c", recipe.name, *overrides(recipe))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"all {STEPS} steps are done" in done.stdout  # by the first test: this one starts no engine


def json_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)
