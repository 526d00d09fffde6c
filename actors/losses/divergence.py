"""Divergences between a student's and a teacher's distribution of the next token, and their gradients by its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergences:
    """Of n positions, (n,) each."""

    jsd: torch.Tensor
    """The generalised Jensen-Shannon divergence."""
    kl: torch.Tensor
    """KL(student || teacher), whatever beta is."""
    student_to_mixture: torch.Tensor
    """KL(student || mixture), which the gradient needs; KL(student || teacher) where beta is 1, 0 where it is 0."""


def generalised_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> Divergences:
    """beta KL(p || m) + (1 - beta) KL(q || m), with m = beta p + (1 - beta) q; GKD, arXiv 2306.13649 eq. 1.

    p is the teacher's distribution, q the student's. At the ends, where that is 0 whatever they are, what stands here
    is its limit divided by beta or 1 - beta, as in the authors' code: KL(p || q) for 0 and KL(q || p) for 1.

    Args:
        student: (n, V) log-probabilities.
        teacher: (n, V) log-probabilities.
        beta: from 0 to 1.
    """
    q = student.exp()
    kl = _expectation(q, student - teacher)
    if beta == 1:
        return Divergences(jsd=kl, kl=kl, student_to_mixture=kl)
    p = teacher.exp()
    if beta == 0:
        return Divergences(jsd=_expectation(p, teacher - student), kl=kl, student_to_mixture=torch.zeros_like(kl))
    mixture = log_mixture(student, teacher, beta)
    to_mixture = _expectation(q, student - mixture)
    jsd = beta * _expectation(p, teacher - mixture) + (1 - beta) * to_mixture
    return Divergences(jsd=jsd, kl=kl, student_to_mixture=to_mixture)


def jsd_gradient(
    student: torch.Tensor, teacher: torch.Tensor, student_to_mixture: torch.Tensor, beta: float
) -> torch.Tensor:
    """Gradient of `generalised_jsd` by the student's logits, for some or all words, (n, v).

    q - p for beta 0; else (1 - beta) q (log q - log m - KL(q || m)), without the factor and with p for m for beta 1.

    Args:
        student: (n, v) log-probabilities; those of a part of the words suffice.
        teacher: (n, v) log-probabilities.
        student_to_mixture: (n,) over all words.
    """
    if beta == 0:
        return student.exp() - teacher.exp()
    mixture = teacher if beta == 1 else log_mixture(student, teacher, beta)
    factor = 1.0 if beta == 1 else 1 - beta
    return student.exp().mul_((student - mixture).sub_(student_to_mixture[:, None])).mul_(factor)


def log_mixture(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """log(beta p + (1 - beta) q), for beta between 0 and 1 and neither."""
    return torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))


def _expectation(probabilities: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vecdot(probabilities, values)
