"""What changed between two versions of a bucket: a bit for each element, and the new value of each that changed.

Values, not differences: applying twice gives the same bytes, and nothing is rounded. Elements, not blocks: after a step
of RL a few per cent of the bfloat16 values differ, and they lie everywhere.
"""

from __future__ import annotations

import numpy as np


def encode(new: np.ndarray, old: np.ndarray, itemsize: int) -> np.ndarray | None:
    """(nbytes,) uint8 from which `apply` makes `new` of `old`; None: `new` itself is not longer.

    Args:
        new, old: (n,) uint8 of the same length, a multiple of 8 elements.
        itemsize: bytes of an element, 2 or 4.
    """
    elements = new.view(_TYPES[itemsize])
    changed = elements != old.view(_TYPES[itemsize])
    if changed.size // 8 + int(np.count_nonzero(changed)) * itemsize >= new.nbytes:
        return None
    return np.concatenate([np.packbits(changed), elements[changed].view(np.uint8)])


def apply(delta: np.ndarray, old: np.ndarray, itemsize: int) -> None:
    """Make the new bucket of the old one, in place.

    Raises:
        ValueError: the delta does not belong to a bucket of this length.
    """
    elements = old.view(_TYPES[itemsize])
    bits = elements.size // 8
    changed = np.unpackbits(delta[:bits]).view(bool) if delta.size >= bits else None
    if changed is None or delta.size != bits + int(np.count_nonzero(changed)) * itemsize:
        raise ValueError(f"a delta of {delta.size} bytes does not fit a bucket of {old.size}")
    values = np.empty(delta.size - bits, dtype=np.uint8)
    values[:] = delta[bits:]  # aligned, as a view of an element's type must be
    elements[changed] = values.view(_TYPES[itemsize])


_TYPES = {2: np.uint16, 4: np.uint32}
