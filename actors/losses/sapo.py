"""SAPO: a smooth gate in place of a clip."""

from __future__ import annotations

import torch


def sapo(ratio: torch.Tensor, advantages: torch.Tensor, *, tau_positive: float, tau_negative: float) -> torch.Tensor:
    """sigmoid(tau (r - 1)) 4 / tau A of each token, (N,); arXiv 2511.20347.

    tau is `tau_positive` where the advantage is above 0, else `tau_negative`. At r = 1 the gradient is A.
    """
    # torch.where on two Python numbers would round them to float32
    tau = torch.full_like(ratio, tau_negative).masked_fill(advantages > 0, tau_positive)
    # not torch.sigmoid, whose gradient s (1 - s) keeps no digits of 1 - s far above r = 1; the exponent is at most tau
    return 4 / tau * advantages / (1 + torch.exp(-tau * (ratio - 1)))
