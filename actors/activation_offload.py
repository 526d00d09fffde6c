"""Activations that the backward pass needs, kept in the host's memory meanwhile."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.autograd.graph import saved_tensors_hooks

_LEAST_BYTES = 1 << 16
"""Smaller tensors stay: a copy would cost more than their memory is worth."""


def offloaded_activations(least_bytes: int = _LEAST_BYTES) -> AbstractContextManager[None]:
    """Whatever autograd saves inside is copied to the host, and back when the backward pass asks for it.

    Around a decoder with checkpointed layers that is the input of each layer: what a layer saves itself is thrown away
    and computed again, outside of this. Parameters are not copied: ZeRO-3 frees and gathers them itself. On a GPU the
    copies go through pinned memory; on a CPU they only cost time, and give the same.
    """
    return saved_tensors_hooks(lambda tensor: _pack(tensor, least_bytes), _unpack)


_Packed = tuple[torch.device, torch.Tensor]


def _pack(tensor: torch.Tensor, least_bytes: int) -> _Packed:
    if isinstance(tensor, torch.nn.Parameter) or tensor.nbytes < least_bytes:
        return tensor.device, tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    host.copy_(tensor)
    return tensor.device, host


def _unpack(packed: _Packed) -> torch.Tensor:
    device, tensor = packed
    return tensor.to(device, non_blocking=tensor.is_pinned())
