"""A policy that has moved away from its initial weights, by noise that is the same in every process.

A policy that equals its reference, its sampler and, under adapters, its base would hide much: the KL term and the
first LoRA factor have a gradient of 0 there, and importance weights are 1.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

RELATIVE = 3e-3
"""Noise of a parameter, as a part of its root mean square. Moves log-probabilities by about 0.1 nat."""
OF_ZEROS = 1e-3
"""Noise of a parameter that is all zeros: the second LoRA factor, biases."""


@torch.no_grad()
def drift(model: Any, seed: int) -> None:
    """Add noise to the trained parameters, in place. It depends on the seed, their names, shapes and values alone."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        values = parameter.detach().float()
        scale = float(values.double().square().mean().sqrt()) * RELATIVE or OF_ZEROS
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float32)
        parameter.copy_(values + scale * noise.to(values.device))
