"""The reference policy: what the KL term is taken to. A frozen copy, or what stands under the policy's adapters.

A frozen copy is partitioned like the policy: under ZeRO-3 each rank holds 1 / ranks of it. With `refresh_steps` the
reference follows the policy (TR-DPO, arXiv 2404.09656): reference <- mixup policy + (1 - mixup) reference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from funicular.actors import lora
from funicular.actors.config import AlgorithmConfig, LearnerConfig
from funicular.actors.deepspeed_engine import gathered, make_frozen_engine

_STEPS = "steps"

Pairs = Mapping[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]
"""By name: a parameter of the policy, and the reference's that follows it."""


class Reference(ABC):
    """All methods are collectives under ZeRO-3: every rank calls them, in the same order.

    Args:
        refresh_steps: training steps between refreshes; 0: never.
        mixup: part of the policy in a refreshed reference.
    """

    def __init__(self, refresh_steps: int, mixup: float) -> None:
        self._refresh_steps = refresh_steps
        self._mixup = mixup
        self._steps = 0

    @abstractmethod
    def scoring(self) -> AbstractContextManager[Any]:
        """The model that scores as the reference, inside a `with`."""

    @abstractmethod
    def _pairs(self) -> Pairs: ...

    def end_step(self) -> bool:
        """A training step has ended. Returns whether the reference was refreshed from the policy as it is now."""
        if self._refresh_steps == 0:
            return False
        self._steps += 1
        due = self._steps % self._refresh_steps == 0
        if due:
            for policy, reference in self._pairs().values():
                with gathered([policy]), gathered([reference], writes=True):
                    mixed = torch.lerp(reference.data.float(), policy.data.float(), self._mixup)
                    reference.data.copy_(policy.data if self._mixup == 1 else mixed)
        return due

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What a checkpoint must keep: whole tensors by name, one at a time. Nothing if there is never a refresh."""
        if self._refresh_steps == 0:
            return
        yield _STEPS, torch.tensor(self._steps)
        for name, (_, reference) in self._pairs().items():
            with gathered([reference]):
                yield name, reference.data.to("cpu", copy=True)

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from what `state` gave. Tensors are looked up one at a time.

        Raises:
            ValueError: it is that of another kind of reference policy.
        """
        pairs = self._pairs() if self._refresh_steps else {}
        expected = {_STEPS, *pairs} if pairs else set()
        if set(tensors) != expected:
            raise ValueError(
                f"algorithm.reference_refresh_steps: the checkpoint's reference policy has {len(tensors)} tensors, "
                f"this run's {len(expected)}; continue with the keys it was saved with (reference_refresh_steps, "
                "learner.lora_rank), or start from its exported model"
            )
        if not pairs:
            return
        self._steps = int(tensors[_STEPS])
        for name, (_, reference) in pairs.items():
            with gathered([reference], writes=True):
                reference.data.copy_(tensors[name])


class FrozenCopy(Reference):
    """A second model.

    Args:
        model: a PolicyModel, or the engine around it that has partitioned it.
        policy: the policy's causal language model, without adapters.
    """

    def __init__(self, model: Any, policy: Any, refresh_steps: int, mixup: float) -> None:
        super().__init__(refresh_steps, mixup)
        self._model = model
        self._policy = policy

    def scoring(self) -> AbstractContextManager[Any]:
        return nullcontext(self._model)

    def _pairs(self) -> Pairs:
        copy = dict(getattr(self._model, "module", self._model).causal_lm.named_parameters())
        return {name: (parameter, copy[name]) for name, parameter in self._policy.named_parameters()}


class UnderAdapters(Reference):
    """The policy's own frozen weights: without adapters, or, if it is ever refreshed, with a second, frozen set."""

    def __init__(self, engine: Any, refresh_steps: int) -> None:
        super().__init__(refresh_steps, 1.0)  # factors do not mix linearly
        self._engine = engine

    @contextmanager
    def scoring(self) -> Iterator[Any]:
        causal_lm = self._engine.module.causal_lm
        lora.switch_adapters(causal_lm, lora.REFERENCE if self._refresh_steps else None)
        try:
            yield self._engine
        finally:
            lora.switch_adapters(causal_lm, lora.POLICY)

    def _pairs(self) -> Pairs:
        return lora.adapter_pairs(self._engine.module.causal_lm)


def make_reference(
    engine: Any, algorithm: AlgorithmConfig, config: LearnerConfig, device: torch.device, load: Callable[[], Any]
) -> Reference:
    """The reference policy that goes with a policy.

    Args:
        engine: around the policy. It is made first, so that never two whole models stand on the device under ZeRO-3.
        load: makes a PolicyModel of the initial weights.
    """
    refresh = algorithm.reference_refresh_steps
    if config.lora_rank:
        return UnderAdapters(engine, refresh)
    model = load().requires_grad_(False)
    if config.zero_stage == 3:
        model = make_frozen_engine(model, config, device)
    return FrozenCopy(model, engine.module.causal_lm, refresh, algorithm.reference_mixup)
