"""A teacher inside a learner rank: a frozen model that gives whole distributions of the next token.

Distributions over a whole vocabulary are too large to be sent, so the model stands where the loss is computed, as the
reference policy does: whole on each rank, or partitioned over the ranks under ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from funicular.actors.collate import Batch
from funicular.actors.config import LearnerConfig
from funicular.actors.deepspeed_engine import gathered, make_frozen_engine
from funicular.actors.distillation_config import DistillationConfig, divergence_beta
from funicular.actors.head import TeacherTarget
from funicular.actors.layout import Layout
from funicular.actors.policy import PolicyModel, load_causal_lm
from funicular.actors.sequence import SequenceGroup
from funicular.actors.token_divergences import TeacherStates


class TeacherModel(PolicyModel):
    """Stops before the output head: `token_divergences` multiplies by it, tile by tile beside the student's."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        predictors: torch.Tensor,
        *,
        layout: Layout | None = None,
    ) -> torch.Tensor:
        """(N, H') hidden states before the tokens to score; arguments as `PolicyModel.forward`."""
        return self.predicting_states(input_ids, attention_mask, position_ids, predictors, layout)


class RankTeacher:
    """One rank's teacher, or its share of it.

    Args:
        model: a TeacherModel, or the engine around it that has partitioned it.
        temperature: both sides' logits are divided by it.
    """

    def __init__(self, model: Any, config: DistillationConfig, temperature: float) -> None:
        self._model = model
        self._config = config
        self._temperature = temperature
        inner: TeacherModel = getattr(model, "module", model)
        self._head = inner.head
        self.packed = inner.packed
        """Whether it runs over packed rows; batches must be as it wants them."""
        self.shares_prompts = inner.shares_prompts
        """Whether they may share their prompts."""

    @contextmanager
    def target(self, batch: Batch) -> Iterator[TeacherTarget]:
        """What a student's pass over the batch is compared with, inside a `with` that holds its backward pass too.

        Every rank enters together: under ZeRO-3 it is a collective.
        """
        with torch.no_grad():
            hidden = self._model(
                batch.input_ids,
                batch.attention_mask,
                batch.position_ids,
                batch.predictors,
                layout=batch.layout,
            )
        head = self._head
        with gathered([parameter for parameter in (head.weight, head.bias) if parameter is not None]):
            states = TeacherStates(hidden=hidden, weight=head.weight, bias=head.bias, logit_map=head.logit_map)
            yield TeacherTarget(states=states, beta=divergence_beta(self._config), temperature=self._temperature)


def make_rank_teacher(
    folder: Path,
    distillation: DistillationConfig,
    config: LearnerConfig,
    device: torch.device,
    temperature: float,
    sequence_group: SequenceGroup | None = None,
) -> RankTeacher:
    """Load the teacher; under ZeRO-3 each rank keeps its share.

    Args:
        temperature: the sampling temperature, for `distillation.temperature: null`.
        sequence_group: the ranks that share the tokens of each pass.

    Raises:
        ValueError: a model that the learner cannot run.
    """
    dtype_name: Any = config.compute_dtype if distillation.dtype == "auto" else distillation.dtype
    dtype = getattr(torch, dtype_name)
    causal_lm = load_causal_lm(folder, dtype)
    if config.zero_stage < 3:  # else it goes to the device in parts
        causal_lm.to(device)
    model: Any = TeacherModel(
        causal_lm,
        compute_dtype=dtype,
        packing=config.packing,
        share_prompts=config.share_prefix != "off",
        sequence_group=sequence_group,
    ).requires_grad_(False)
    if config.zero_stage == 3:
        # DeepSpeed casts what it partitions to the type that its configuration names.
        model = make_frozen_engine(model, replace(config, dtype=dtype_name), device)
    soft = distillation.temperature
    return RankTeacher(model, distillation, temperature if soft is None else soft)
