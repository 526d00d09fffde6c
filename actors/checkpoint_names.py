"""From vLLM's names of parameters to those of the checkpoint, for models whose parts vLLM names in another way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def checkpoint_name(model: Any) -> Callable[[str], str]:
    """The inverse of the model's `hf_to_vllm_mapper`, as far as that maps prefixes.

    Several prefixes may have become one; the first that the mapper lists is the newest, which transformers uses.
    """
    mapper: Any = getattr(model, "hf_to_vllm_mapper", None)

    def named(name: str) -> str:
        for old, new in mapper.orig_to_new_prefix.items() if mapper else ():
            candidate = old + name.removeprefix(new or "")
            if new and name.startswith(new) and mapper.map_name(candidate) == name:
                return candidate
        return name

    return named
