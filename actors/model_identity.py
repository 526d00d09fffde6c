"""Which model a run began with, without reading all of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_BYTES = 4096


def model_digest(folder: Path) -> str:
    """16 hex digits over name, type, shape and first bytes of every tensor in a folder's safetensors files.

    Independent of how tensors are spread over files. A model that was trained further has another digest, because some
    of these bytes changed. A folder without safetensors gives the digest of no tensors.
    """
    tensors: dict[str, bytes] = {}
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                file.seek(8 + length + begin)
                said = f"{entry['dtype']} {entry['shape']} ".encode()
                tensors[name] = said + file.read(min(end - begin, _BYTES))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + b"\0" + tensors[name])
    return digest.hexdigest()[:16]
