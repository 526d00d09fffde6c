"""Safetensors files written and read in pieces, so that no tensor has to be whole in memory.

The format (github.com/huggingface/safetensors): 8 bytes, the header's length, little endian; the header, JSON; the
tensors' bytes one after another. What is written here opens with any reader of safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


class TensorFileError(ValueError):
    """A file is not what its header says; names it."""


class TensorFileWriter:
    """Writes tensors whose types and shapes are known, element by element in the order in which they were announced.

    Args:
        tensors: name to (dtype, shape).
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in tensors.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that tensors are aligned
        self._path = path
        self._left = end
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, elements: torch.Tensor) -> None:
        """Append elements, of any shape, in the announced type."""
        if elements.numel() == 0:
            return
        data = elements.detach().to("cpu").contiguous().view(-1).view(torch.uint8).numpy()
        self._file.write(data.data)
        self._left -= data.nbytes

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if error is None and self._left:
            raise TensorFileError(f"{self._path}: {self._left} bytes of the announced tensors were not written")


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors that are whole."""
    with TensorFileWriter(path, {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}) as file:
        for tensor in tensors.values():
            file.write(tensor)


class TensorFile:
    """Reads a safetensors file; only what is asked for comes into memory.

    Raises:
        TensorFileError: the file is missing, or shorter than its header says.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (OSError, ValueError) as error:
            raise TensorFileError(f"{path}: cannot be read as safetensors: {error}") from error
        header.pop("__metadata__", None)
        self._header: dict[str, Any] = header
        self._data = 8 + length
        needed = self._data + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if path.stat().st_size < needed:
            raise TensorFileError(f"{path}: {path.stat().st_size} bytes, its header says {needed}; the file is torn")

    def names(self) -> list[str]:
        """Tensors of the file, in order."""
        return list(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return tuple(self._header[name]["shape"])

    def read(self, name: str, start: int = 0, count: int | None = None) -> torch.Tensor:
        """Elements of the flattened tensor; all, or `count` from `start` on. Shape (count,)."""
        entry = self._header[name]
        dtype = _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        if count is None:
            count = (end - begin) // dtype.itemsize - start
        offset = self._data + begin + start * dtype.itemsize
        if count == 0:  # views of no bytes as another type are refused
            return torch.empty(0, dtype=dtype)
        raw = np.fromfile(self._path, dtype=np.uint8, count=count * dtype.itemsize, offset=offset)
        return torch.from_numpy(raw).view(dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """A whole tensor."""
        return self.read(name).view(self.shape(name))
