"""How far a gradient is from another, over all parameters together and for each. No torch at import time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from funicular.actors.tensor_file import TensorFile


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterError:
    """Of one parameter: Euclidean norms."""

    difference: float
    expected: float
    """Norm of the gradient that was expected."""

    @property
    def relative(self) -> float:
        """|difference| / |expected|; infinite where 0 was expected and something else came, NaN where NaN came."""
        if self.expected == 0 and not math.isnan(self.difference):
            return math.inf if self.difference else 0.0
        return self.difference / self.expected if self.expected else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientErrors:
    """Of all trained parameters of a model."""

    parameters: Mapping[str, ParameterError]

    @property
    def relative(self) -> float:
        """|g - expected| / |expected| over all parameters together."""
        of_all = ParameterError(
            difference=_norm([error.difference for error in self.parameters.values()]),
            expected=_norm([error.expected for error in self.parameters.values()]),
        )
        return of_all.relative

    @property
    def worst(self) -> str:
        """The parameter whose own relative error is the largest; one that is NaN comes first."""
        errors = {name: error.relative for name, error in self.parameters.items()}
        return max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])


class GradientComparison:
    """Compares a gradient with that in a file, one parameter at a time.

    Args:
        expected: name to float64 tensor, for each trained parameter.
    """

    def __init__(self, expected: TensorFile) -> None:
        self._expected = expected
        self._found: dict[str, ParameterError] = {}

    def add(self, name: str, gradient: torch.Tensor | None) -> None:
        """Compare one parameter's; None: it has none, which is a gradient of 0.

        Raises:
            ValueError: shapes differ, or nothing was expected of a parameter of this name.
        """
        if name not in self._expected.names():
            raise ValueError(f"{name}: has a gradient here and none in the reference")
        expected: Any = self._expected.tensor(name)
        got = expected.new_zeros(expected.shape) if gradient is None else gradient.detach().cpu().to(expected.dtype)
        if got.shape != expected.shape:
            raise ValueError(f"{name}: gradient of shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
        self._found[name] = ParameterError(difference=float((got - expected).norm()), expected=float(expected.norm()))

    def result(self) -> GradientErrors:
        """What was found.

        Raises:
            ValueError: a parameter was not compared.
        """
        if missing := sorted(set(self._expected.names()) - set(self._found)):
            raise ValueError(
                f"{len(missing)} parameters have a gradient in the reference only: {', '.join(missing[:3])}"
            )
        return GradientErrors(parameters=self._found)


def _norm(values: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in values))
