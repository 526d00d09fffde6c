"""Results that are plain data with names: a named tuple, a member of an enumeration of integers or texts.

Here such an object is a tuple, integer or text of what judged code claimed when it returned it, so tests compare it,
hash it and compute with it as with any claim. What a tuple, integer or text has no answer to, its fields and methods,
is asked of the candidate. Constants of the candidate's do not come so: a test that expects one must not compare.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from funicular.rewards.sandbox.slot.runtime.handles import Handle

_KINDS = (tuple, int, str)
_MOST_CLASSES = 256


class Valued:
    """What the classes of such objects have in common; the other base is tuple, int or str."""

    _handle: Handle
    """The object over there."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Valued.__annotations__:
            raise AttributeError(name)
        return getattr(self._handle, name)

    def __str__(self) -> str:
        return str(self._handle)

    def __repr__(self) -> str:
        return repr(self._handle)


def valued(handle: Handle, value: Any) -> Any:
    """An object that the candidate returned.

    Raises:
        ValueError: `value` is no tuple, integer or text.
    """
    kind: Any = type(value)
    if kind not in _KINDS:
        raise ValueError(f"an object that is a {kind.__name__}")
    made = kind.__new__(_class(type(handle).__name__, kind), value)
    made._handle = handle
    return made


@lru_cache(maxsize=_MOST_CLASSES)
def _class(name: str, kind: type[Any]) -> Any:
    return type(name, (Valued, kind), {})
