"""Importance ratios of one completion: a value for each of its trained tokens."""

from collections.abc import Sequence

from tests.reference.complex_step import exp, stopped


def ratios(level: str, lp_T: Sequence[complex], old_T: Sequence[float]) -> list[complex]:
    differences = [lp - old for lp, old in zip(lp_T, old_T, strict=True)]
    n = len(differences)
    if level == "token":
        return [exp(d) for d in differences]
    if level == "sequence":  # GSPO eq. 7: the geometric mean of token ratios
        return [exp(sum(differences) / n)] * n
    if level == "sequence_token":  # GSPO eq. 14
        s = stopped(exp(sum(differences) / n))
        return [s * exp(lp - stopped(lp)) for lp in lp_T]
    if level == "sequence_sum":  # RLOO: the probability ratio of the whole completion
        return [exp(sum(differences))] * n
    raise ValueError(level)
