"""The Grafana dashboard asks for metrics that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from funicular.launch.step_gauges import gauge_name
from tests.prometheus_names import generator_metrics, live_metrics, node_metrics, part_metrics, step_metrics

DASHBOARD = json.loads(
    (Path(__file__).resolve().parents[3] / "k8s" / "monitoring" / "grafana-dashboard.json").read_text()
)
PANELS = DASHBOARD["panels"]


def targets() -> list[dict[str, Any]]:
    return [target for panel in PANELS for target in panel.get("targets", [])]


def test_every_query_names_only_metrics_that_exist() -> None:
    asked = {name for target in targets() for name in re.findall(r"\bray_\w+", target["expr"])}
    assert len(asked) > 60
    live = live_metrics() | part_metrics()
    assert asked - generator_metrics() - step_metrics() - node_metrics() - live == set()


def test_every_query_names_a_metric_and_what_it_names_of_a_run_is_of_the_chosen_one() -> None:
    of_a_run = step_metrics() | live_metrics() | part_metrics()
    for target in targets():
        names = re.findall(r"\bray_\w+", target["expr"])
        assert names
        assert all(f'{name}{{run="$run"}}' in target["expr"] for name in names if name in of_a_run)


def test_every_metric_of_a_generator_is_shown() -> None:
    asked = {name for target in targets() for name in re.findall(r"\bray_funicular_generator_\w+", target["expr"])}
    assert asked == generator_metrics()


def test_all_that_is_told_between_steps_is_shown() -> None:
    told = live_metrics() | part_metrics()
    asked = {name for target in targets() for name in re.findall(r"\bray_\w+", target["expr"])}
    assert told - asked == set()


def test_runs_are_listed_before_their_first_step() -> None:
    (run,) = (variable for variable in DASHBOARD["templating"]["list"] if variable["name"] == "run")
    (asked,) = re.findall(r"\bray_\w+", run["query"]["query"])
    assert asked in live_metrics()


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    cells: dict[tuple[int, int], str] = {}
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert cells.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("reward/mean", "funicular_reward_mean"),
        ("reward/my rewards.py:f_x_", "funicular_reward_my_rewards_py_f_x"),
        ("eval/held_out/pass_at_1", "funicular_eval_held_out_pass_at_1"),
    ],
)
def test_a_metric_gets_a_name_that_prometheus_takes(metric: str, name: str) -> None:
    assert gauge_name(metric) == name
    assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", name)
