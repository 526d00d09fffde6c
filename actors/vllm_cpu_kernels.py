"""Kernels that vLLM's CPU build has and does not choose by itself, through its registry of implementations.

vLLM expects its compiler to fuse a layer's normalisation; uncompiled, it runs as eight operations and as many passes
over the tokens. Compiling takes minutes at every start, so engines on CPUs do not (`engine.py`).
"""

from __future__ import annotations

import torch

PROVIDER = "funicular_cpu"
PRIORITY = {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}
"""For vLLM's `ir_op_priority`; its own implementation takes what these do not."""


def register() -> None:
    """Make them known to this process, once."""
    from vllm import ir
    from vllm.platforms import current_platform

    if PROVIDER in ir.ops.rms_norm.impls:
        return
    current_platform.import_kernels()

    @ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes)
    def rms_norm(
        x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> torch.Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        torch.ops._C.rms_norm(out, x, weight, epsilon)
        return out

    @ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_with_residual, inplace=True)
    def fused_add_rms_norm(
        x: torch.Tensor,
        x_residual: torch.Tensor,
        weight: torch.Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual


def _takes(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """The kernel reads rows one after the other, in one type, and has a weight."""
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.is_contiguous()


def _takes_with_residual(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return _takes(x, weight, epsilon, variance_size) and x_residual.is_contiguous() and x_residual.dtype == x.dtype
