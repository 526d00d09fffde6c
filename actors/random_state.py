"""The random state of a learner rank: torch, CUDA, numpy and Python, as tensors."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping

import numpy as np
import torch


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """All generators of this process that code of the learner could draw from."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, next_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy.keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
        "python.words": torch.tensor([version, *words], dtype=torch.int64),
        "python.gauss": torch.tensor([] if next_gauss is None else [next_gauss], dtype=torch.float64),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Continue where `random_state` was taken. State of a GPU is left out where there is none."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, gauss = state["numpy.rest"].tolist()
    keys = state["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    version, *words = state["python.words"].tolist()
    next_gauss = state["python.gauss"].tolist()
    random.setstate((version, tuple(words), next_gauss[0] if next_gauss else None))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_from(state: Mapping[str, torch.Tensor], rank: int) -> None:
    """Begin a state for a rank that the saved run did not have: its own, and the same at every resume."""
    digest = hashlib.sha256(state["torch"].numpy().tobytes() + rank.to_bytes(8, "little")).digest()
    seed = int.from_bytes(digest[:4], "little")
    torch.manual_seed(seed)  # the GPU's too
    np.random.seed(seed)
    random.seed(seed)
