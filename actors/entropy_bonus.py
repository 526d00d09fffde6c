"""The weight of the entropy bonus, constant or steered towards a target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

_STEP, _GREATEST = 0.005, 1.0
_LAST, _COEF = "last_entropy", "coef"


class EntropyBonus:
    """Skywork-OR1, arXiv 2505.22312: raise the coefficient by 0.005 after each step whose entropy is at most the
    target, lower it after others, within [0, 1]; apply it only while the last step's entropy was at most the target.

    Args:
        coef: at the start; with a target, where steering starts.
        target: nats; None: the coefficient is constant.
    """

    def __init__(self, coef: float, target: float | None) -> None:
        self._coef = coef
        self._target = target
        self._last: float | None = None

    @property
    def applied(self) -> float:
        """What the step that comes multiplies the mean entropy by; 0 in the first step that is steered."""
        if self._target is None:
            return self._coef
        return self._coef if self._last is not None and self._last <= self._target else 0.0

    def end_step(self, entropy: float | None) -> None:
        """Steer by the mean entropy of a step, nats; None: it trained nothing, and says nothing."""
        if self._target is None or entropy is None:
            return
        moved = self._coef + (_STEP if entropy <= self._target else -_STEP)
        self._coef = min(max(moved, 0.0), _GREATEST)
        self._last = entropy

    def state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """For a checkpoint, by name."""
        yield _COEF, torch.tensor(self._coef, dtype=torch.float64)
        if self._last is not None:
            yield _LAST, torch.tensor(self._last, dtype=torch.float64)

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state`."""
        self._coef = float(state[_COEF])
        self._last = float(state[_LAST]) if _LAST in state else None
