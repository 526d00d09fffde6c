"""Objects that stay in the candidate, as the tests see them.

Judged code may return an object where the tests expect plain data, and then its methods would decide the test:
`assert abs(f(x) - 3.14) < 1e-6` with a `__sub__` that gives 0. So whatever carries the expected value to the object
is an error: comparison, hashing, arithmetic; and on objects that the tests did not construct themselves, from a class
by its name, also the questions that plain data answers (`startswith`, `issubset`, ...), while `in` looks through the
items here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from funicular.rewards.sandbox import codec
from funicular.rewards.sandbox.slot.runtime.valued import Valued, valued

Call = Callable[..., Any]
"""(function, arguments, keywords, handle or None) -> result: `Candidate.call`."""

_FORWARDED = ("__len__", "__bool__", "__getitem__", "__setitem__", "__delitem__", "__call__")
_VALUES = (bool, int, float, complex, str, bytes, tuple, frozenset, range)
_QUESTIONS = frozenset(name for kind in _VALUES for name in dir(kind) if not name.startswith("_"))


class CandidateError(Exception):
    """The candidate ended, broke the protocol, or raised, returned or is asked what cannot cross."""


class _ClassProxy(type):
    _call: Call

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls._call("__getattr__", (name,), {}, cls.__name__)

    def __instancecheck__(cls, instance: Any) -> bool:
        kind = type(instance._handle) if isinstance(instance, Valued) else type(instance)
        return type.__subclasscheck__(cls, kind)


class Handle(metaclass=_ClassProxy):
    """An object in the candidate. Its class here is a proxy made by `class_proxy`."""

    _number: int
    _constructed: bool
    """By the tests, as the instance of a class; False: it may stand where they expect plain data."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        kind = type(self)
        made = kind._call(kind.__name__, arguments, keywords)
        if isinstance(made, Valued):  # it is what the tests expect then, and must not be compared
            made = made._handle
        if not isinstance(made, Handle):
            raise CandidateError(f"{kind.__name__}() made plain data")
        # A candidate may define a class in the place of a function; tests write the names of classes large.
        _become(self, made._number, constructed=kind.__name__[0].isupper())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Handle.__annotations__:  # not there: its construction failed
            raise AttributeError(name)
        if name in _QUESTIONS and not self._constructed:
            raise self._refusal(f"asked {name!r}")
        return self._forward("__getattr__", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._forward("__setattr__", name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._forward("__iter__"))

    def __contains__(self, item: Any) -> bool:
        if self._constructed:
            return bool(self._forward("__contains__", item))
        return any(mine == item for mine in self)

    def __str__(self) -> str:
        return str(self._forward("__str__"))

    def __repr__(self) -> str:
        return str(self._forward("__repr__"))

    def __eq__(self, other: object) -> bool:
        raise self._refusal("compared")

    def __ne__(self, other: object) -> bool:
        raise self._refusal("compared")

    def __hash__(self) -> int:
        raise self._refusal("hashed")

    def _forward(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        return type(self)._call(name, arguments, keywords, self._number)

    def _refusal(self, what: str) -> CandidateError:
        return CandidateError(f"an object of class {type(self).__name__!r} of the candidate cannot be {what}")


def _forwarding(name: str) -> Callable[..., Any]:
    def method(self: Handle, *arguments: Any, **keywords: Any) -> Any:
        return self._forward(name, *arguments, **keywords)

    return method


for _name in _FORWARDED:
    setattr(Handle, _name, _forwarding(_name))


def class_proxy(name: str, call: Call) -> type[Handle]:
    """A class here whose instances are constructed there."""
    made: Any = _ClassProxy(name, (Handle,), {"_call": staticmethod(call)})
    return made


def handle_of(kind: type[Handle], number: int, *values: Any) -> Any:
    """An object that the candidate returned; with a value, if it is plain data with names.

    Raises:
        ValueError: there is no such plain data.
    """
    handle = object.__new__(kind)
    _become(handle, number, constructed=False)
    return valued(handle, *values) if values else handle


def reference_to(value: Any) -> list[Any]:
    """What stands for a handle in an argument.

    Raises:
        NotPlain: it is another object.
    """
    if isinstance(value, Valued):
        value = value._handle
    if not isinstance(value, Handle):
        raise codec.NotPlain(type(value).__name__)
    return [value._number, type(value).__name__]


def _become(handle: Handle, number: int, *, constructed: bool) -> None:
    object.__setattr__(handle, "_number", number)
    object.__setattr__(handle, "_constructed", constructed)
