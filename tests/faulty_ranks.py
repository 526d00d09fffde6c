"""Learner ranks with a mistake, which a certificate must show. Real but for that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from funicular.actors.gradient_probe import ProbedRank
from funicular.actors.packing import MicroBatch
from funicular.actors.step_plan import RankPlan
from funicular.actors.types import StepResult


class RankThatForgetsItsPeers(ProbedRank):
    """Does not undo DeepSpeed's mean over ranks: its gradient is the true one divided by their number."""

    def start(self, host: str, port: int) -> dict[str, Any]:
        facts = super().start(host, port)
        self._world_size = 1  # read by `backward` from here on
        return facts


class RankThatAveragesEachPass(ProbedRank):
    """Gives every pass the same weight, however many tokens it has: the mean of micro-batches' means."""

    def step(self, plan: RankPlan) -> StepResult:
        return super().step(replace(plan, optimizer_batches=tuple(map(_evened, plan.optimizer_batches))))


def _evened(micro_batches: tuple[MicroBatch, ...]) -> tuple[MicroBatch, ...]:
    evened = []
    for micro in micro_batches:
        tokens = sum(row.completion_tokens for row in micro.rows)
        weight = 1 / (max(1, tokens) * len(micro_batches))  # a pass without rows has none
        trees = [tuple(replace(row, token_weight=weight) for row in tree) for tree in micro.trees]
        evened.append(replace(micro, trees=tuple(trees)))
    return tuple(evened)
