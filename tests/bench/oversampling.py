"""What over-sampling with an early stop trains on: `python -m tests.bench.oversampling`.

A batch of B groups is wanted, more are begun, and the first B to finish are kept; the others are cut off and dropped.
A group takes as long as its longest completion. Slots in order keep what was begun, whatever its length: factor 1.
"""

from __future__ import annotations

import numpy as np

GROUPS, SIZE, BATCHES = 64, 8, 400
CAP = 4096


def lengths(rng: np.random.Generator, groups: int) -> np.ndarray:
    """(groups, SIZE) tokens: log-normal, median 400, a heavy tail, cut at CAP."""
    return np.minimum(np.ceil(np.exp(rng.normal(np.log(400), 1.0, (groups, SIZE)))), CAP)


def kept(rng: np.random.Generator, factor: float) -> np.ndarray:
    """Completions of one batch."""
    begun = lengths(rng, round(GROUPS * factor))
    first = np.argsort(begun.max(axis=1), kind="stable")[:GROUPS]
    return begun[first]


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    print(f"batches of {GROUPS} groups of {SIZE}; {BATCHES} batches; mean tokens of all that is sampled: ", end="")
    print(f"{lengths(rng, GROUPS * BATCHES).mean():.0f}")
    print(f"{'begun / wanted':>14}{'mean tokens trained':>21}{'truncated trained':>19}{'seconds of the batch':>22}")
    whole = None
    for factor in (1.0, 1.1, 1.25, 1.5, 2.0):
        batches = [kept(rng, factor) for _ in range(BATCHES)]
        tokens = float(np.mean(batches))
        truncated = float(np.mean([batch == CAP for batch in batches]))
        longest = float(np.mean([batch.max() for batch in batches]))
        whole = whole or longest
        print(f"{factor:>14.2f}{tokens:>21.0f}{truncated:>19.2%}{longest / whole:>21.0%} ")


if __name__ == "__main__":
    main()
