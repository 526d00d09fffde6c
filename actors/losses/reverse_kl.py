"""On-policy distillation: what a teacher says of each token that the student sampled, as its advantage."""

from __future__ import annotations

import torch


def reverse_kl_advantages(old_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor, coef: float) -> torch.Tensor:
    """-coef (old - teacher) of each token, without gradient: added to what rewards give.

    At one position, with the student's distribution pi and the teacher's p, for a sampled token

        E[ grad log pi (log pi - log p) ] = grad KL(pi || p),

    because E[grad log pi] = 0: on policy the gradient is the reverse KL's of the next token, position by position. What
    a token does to the KL of later positions is left out (a discount of 0). "On-Policy Distillation", Thinking Machines
    2025; by a sample, the single-step part of MiniLLM's gradient, arXiv 2306.08543 section 2.2.

    Args:
        old_logprobs: (N,) of the policy before the step's first update, or the generator's (bypass).
        teacher_logprobs: (N,) of the same tokens, at the same temperature.
    """
    return -coef * (old_logprobs.detach() - teacher_logprobs.detach())
