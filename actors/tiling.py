"""Sizes of the tiles in which the output head's logits exist (`logit_tiles.py`). No torch: plans count with them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Sizes of the tiles in which logits exist. The results do not depend on them, but for rounding."""

    tokens: int
    vocabulary: int
    kept_bytes: int
    """Logits of all tokens that take at most this are kept for the backward pass instead of computed again."""

    @property
    def tile_bytes(self) -> int:
        """Bytes of one float32 tile; at most four of them exist at the same time."""
        return 4 * self.tokens * self.vocabulary


CPU_TILING = Tiling(tokens=1024, vocabulary=2048, kept_bytes=256 << 20)
"""Tiles of 8 MiB, near a core's cache. Keeping logits saves a fifth of the head's time."""
GPU_TILING = Tiling(tokens=4096, vocabulary=16384, kept_bytes=256 << 20)
"""On an H200, 20,000 tokens x 151,936 words: docs/benchmarks.md."""
