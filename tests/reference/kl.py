"""Estimators of the KL divergence to the reference policy, per token; and the same inside rewards."""

from collections.abc import Sequence

from tests.reference.complex_step import exp


def kl(estimator: str, lp: complex, reference: float, ratio: complex) -> complex:
    """Schulman's k1, k2, k3, and k3 times the importance ratio (DeepSeek-V3.2 eq. 7), of one token."""
    d = reference - lp
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d * d / 2
    if estimator == "k3":
        return exp(d) - d - 1
    if estimator == "k3_unbiased":
        return ratio * (exp(d) - d - 1)
    raise ValueError(estimator)


def k1_of_completion(old_T: Sequence[float], reference_T: Sequence[float]) -> float:
    """What `kl_in: reward` takes, times beta, from a completion's reward."""
    return sum(old - reference for old, reference in zip(old_T, reference_T, strict=True))


def k1_to_go(old_T: Sequence[float], reference_T: Sequence[float]) -> list[float]:
    """For each token the sum of k1 from it, itself included, to the end."""
    return [k1_of_completion(old_T[t:], reference_T[t:]) for t in range(len(old_T))]
