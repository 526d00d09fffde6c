"""A process whose tensors have left a device: their bytes wait in the host's memory, the device's is free for others.

Storages are emptied in place, and filled in place later. So whatever is cut from them stays what it is: DeepSpeed's
flat buffers and the parameters that are views of them, partitions, optimizer states, at every ZeRO stage.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch


class Absence:
    """Takes this process's tensors from a device and brings them back. Only between two passes: no graph may live."""

    def __init__(self) -> None:
        self._away: list[tuple[torch.UntypedStorage, torch.Tensor]] = []

    def leave(self, device: torch.device) -> int:
        """Bring every tensor to the host, also those that are new since the last time; the bytes that left."""
        gc.collect()  # what nobody uses any more need not be kept
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(device)
        left = 0
        for storage in _storages(device):
            kept = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=on_gpu)
            kept.copy_(_bytes_of(storage))
            storage.resize_(0)
            self._away.append((storage, kept))
            left += len(kept)
        if on_gpu:
            torch.cuda.empty_cache()  # to the driver: other processes are to have it
        return left

    def come_back(self) -> None:
        """Bring back all that left. One that failed for want of memory may be asked again."""
        while self._away:
            storage, kept = self._away[-1]
            storage.resize_(len(kept))
            _bytes_of(storage).copy_(kept)
            self._away.pop()


def _storages(device: torch.device) -> Iterator[torch.UntypedStorage]:
    """Each storage on the device that any tensor of this process uses, once."""
    seen = set()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    for tensor in [*tensors, *(t.grad for t in tensors if t.is_leaf and t.grad is not None)]:
        if tensor.device != device or tensor.layout is not torch.strided:
            continue
        storage = tensor.untyped_storage()
        if storage._cdata not in seen and storage.device == device and storage.nbytes() and storage.resizable():
            seen.add(storage._cdata)
            yield storage


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
