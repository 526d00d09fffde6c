"""The top-entropy mask's threshold, and the entropy of a categorical with its gradient."""

import math
from collections.abc import Sequence


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile with linear interpolation between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    if abs(place - round(place)) < 1e-9:  # meant as a whole number: 1 - 0.7 is not 0.3
        place = round(place)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def categorical_entropy(logits_V: Sequence[float], temperature: float) -> tuple[float, list[float]]:
    """H of softmax(logits / temperature), and dH / dlogits = -p (log p + H) / temperature."""
    top = max(logits_V)
    scaled = [(z - top) / temperature for z in logits_V]
    log_total = math.log(sum(math.exp(z) for z in scaled))
    logp_V = [z - log_total for z in scaled]
    H = -sum(math.exp(lp) * lp for lp in logp_V)
    return H, [-math.exp(lp) * (lp + H) / temperature for lp in logp_V]
