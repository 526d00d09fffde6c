"""What the weights of one engine may be taken for: the states of a weight install, and what leads from one to another.

docs/weight_sync.md has the table for readers; tests/unit/actors/test_sync_interleavings.py drives the code that uses it
through every interleaving of faults.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class WeightState(StrEnum):
    """Of one engine."""

    INITIAL = "initial"
    """Its own weights, which nobody verified, or none after a sleep; nothing is generated."""
    LOADING = "loading"
    """Paused, holding a mixture."""
    VERIFYING = "verifying"
    """Paused, holding one whole weight set, perhaps."""
    DECIDING = "deciding"
    """Running; the canary is first, and all tokens wait at the version gate."""
    SERVING = "serving"
    """Running, committed."""
    REFUSED = "refused"
    """Paused; only another install leads out."""


Event = Literal["begin", "loaded", "verified", "committed", "failed", "discarded"]

_S = WeightState
TRANSITIONS: dict[tuple[WeightState, Event], WeightState] = {
    (_S.INITIAL, "begin"): _S.LOADING,
    (_S.SERVING, "begin"): _S.LOADING,
    (_S.REFUSED, "begin"): _S.LOADING,
    (_S.LOADING, "loaded"): _S.VERIFYING,
    (_S.VERIFYING, "verified"): _S.DECIDING,
    (_S.DECIDING, "committed"): _S.SERVING,
    (_S.LOADING, "failed"): _S.REFUSED,
    (_S.VERIFYING, "failed"): _S.REFUSED,
    (_S.DECIDING, "failed"): _S.REFUSED,
    (_S.INITIAL, "discarded"): _S.INITIAL,
    (_S.SERVING, "discarded"): _S.INITIAL,
    (_S.REFUSED, "discarded"): _S.INITIAL,
}
"""Everything else cannot happen. A manifest that is refused is no event: nothing was touched."""


def after(state: WeightState, event: Event) -> WeightState:
    """The next state.

    Raises:
        RuntimeError: this event cannot happen in this state; a fault of this program.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise RuntimeError(f"weights that are {state} cannot be {event}") from None
