"""The tester's view of the candidate: functions and classes whose calls go over the channel.

The tests are trusted, the replies are not. A reply becomes plain data, a handle, or an exception; nothing that
judged code sends runs here.
"""

from __future__ import annotations

import builtins
import keyword
import threading
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NoReturn

from funicular.rewards.sandbox import codec
from funicular.rewards.sandbox.slot.runtime.channel import Channel
from funicular.rewards.sandbox.slot.runtime.handles import CandidateError, Handle, class_proxy, handle_of, reference_to

_MAX_NAME = 200
_NOT_RAISED = ("StopIteration", "StopAsyncIteration")
_EXCEPTIONS: dict[str, type[Exception]] = {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, Exception) and name not in _NOT_RAISED
}
"""By name; SystemExit, KeyboardInterrupt and GeneratorExit are no `Exception`."""


class Candidate:
    """The candidate at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._requests = 0
        self.used = False
        """Something of it was called, or a value of it read. pytest looks for names of its own in every module."""
        self.functions: dict[str, Callable[..., Any]] = {}
        self.classes: dict[str, type] = {}
        self.violations = 0
        """What it said without being asked, or what was no answer."""
        self.failure = ""
        """Why nothing that it says counts any more: it ended, or it broke the protocol."""

    def wait_until_ready(self) -> None:
        """Wait until its source has run, and make proxies for what it announces.

        Raises:
            CandidateError: it ended before, or announced something else.
        """
        ready: Any = self._receive().get("ready")
        try:
            functions, classes = _names(ready["functions"]), _names(ready["classes"])
            coroutines = set(_names(ready.get("coroutines", [])))
            exceptions = dict(zip(_names(ready["exceptions"]), ready["exceptions"].values(), strict=True))
            self.classes.update((name, _exception(name, _EXCEPTIONS[base])) for name, base in exceptions.items())
        except (TypeError, KeyError, ValueError, AttributeError):
            self._break("it announced no names")
        self.classes.update((name, class_proxy(name, self.call)) for name in classes)
        self.functions.update((name, self.function(name, coroutine=name in coroutines)) for name in functions)

    @property
    def names(self) -> dict[str, Any]:
        """What it announced: proxies of functions and classes."""
        return {**self.functions, **self.classes}

    def module(self, name: str, exported: Iterable[str]) -> ModuleType:
        """A module of that name, as tests import it. Other values of the candidate's are asked for when read.

        Args:
            exported: names that `from NAME import *` brings.
        """
        module = ModuleType(name)

        def read(attribute: str) -> Any:
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            return self.call("__getattr__", (attribute,), {})

        module.__dict__.update(self.names)
        module.__dict__.update(__getattr__=read, __all__=sorted(exported))
        return module

    def function(self, name: str, handle: Any = None, *, coroutine: bool = False) -> Callable[..., Any]:
        """A function here that calls the one of that name there."""

        def proxy(*arguments: Any, **keywords: Any) -> Any:
            return self.call(name, arguments, keywords, handle)

        async def awaitable(*arguments: Any, **keywords: Any) -> Any:
            return self.call(name, arguments, keywords, handle)

        made = awaitable if coroutine else proxy
        made.__name__ = made.__qualname__ = name
        return made

    def call(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], handle: Any = None) -> Any:
        """Call it, copy what it changed in its arguments back, and return its result or raise its exception."""
        request: dict[str, Any] = {"function": name}
        try:
            request["args"] = codec.encode(arguments, reference_to)
            if keywords:
                request["kwargs"] = codec.encode(keywords, reference_to)
        except codec.NotPlain as error:
            raise CandidateError(f"{name}: an argument cannot cross to the candidate: {error}") from None
        if handle is not None:
            request["handle"] = handle
        with self._lock:
            reply = self._exchange(request)
        self.used = self.used or name != "__getattr__" or "raised" not in reply
        if "raised" in reply:
            self._raise(reply)
        if "opaque" in reply:
            raise CandidateError(f"{name} returned an object of type {str(reply['opaque'])[:_MAX_NAME]!r}")
        try:
            if "args" in reply:
                _copy_back(arguments, codec.decode(reply["args"], self._referred))
            if "handle" in reply:
                return self._referred([reply["handle"], reply["class"]])
            if reply.get("callable") is True and name == "__getattr__":
                return self.function(arguments[0], handle, coroutine=reply.get("coroutine") is True)
            return codec.decode(reply["value"], self._referred)
        except (ValueError, KeyError) as error:
            self._break(f"a reply that is no data: {error}")

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.failure:
            raise CandidateError(self.failure)
        try:
            if self._channel.has_input():
                self._break("it sent something before it was called")
        except ConnectionError:
            self._lose()
        self._requests += 1
        request["id"] = self._requests
        try:
            self._channel.send(codec.dumps(request))
        except OSError:
            self._lose()
        reply = self._receive()
        if reply.get("id") != self._requests:
            self._break("it answered another call")
        return reply

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._channel.receive()
        except ConnectionError:
            line = None
        except ValueError as error:
            self._break(str(error))
        if line is None:
            self._lose()
        try:
            reply = codec.loads(line)
        except ValueError as error:
            self._break(f"a reply that is no data: {error}")
        if type(reply) is not dict:
            self._break("a reply that is no object")
        return reply

    def _break(self, reason: str) -> NoReturn:
        self.violations += 1
        self.failure = f"the candidate broke the protocol: {reason}"
        raise CandidateError(self.failure) from None

    def _lose(self) -> NoReturn:
        self.failure = "the candidate ended"
        raise CandidateError(self.failure) from None

    def _raise(self, reply: dict[str, Any]) -> NoReturn:
        name, message = str(reply["raised"])[:_MAX_NAME], str(reply.get("message", ""))[:500]
        kind = self.classes.get(str(reply.get("class")))
        if kind is None or not issubclass(kind, Exception):
            kind = _EXCEPTIONS.get(name)
        if kind is None:
            raise CandidateError(f"{name}: {message}")
        try:
            arguments = codec.decode(reply["arguments"]) if "arguments" in reply else (message,)
            error = kind(*arguments)
        except (TypeError, ValueError):  # not with these arguments
            raise CandidateError(f"{name}: {message}") from None
        raise error

    def _referred(self, reference: Any) -> Any:
        if type(reference) is not list or [type(part) for part in reference[:2]] != [int, str] or len(reference) > 3:
            raise ValueError("a handle is a number, the name of a class, and a value at most")
        number, name = reference[:2]
        values = [codec.decode(value, self._referred) for value in reference[2:]]
        kind: type | None = self.classes.get(name)
        if kind is None or not issubclass(kind, Handle):
            kind = class_proxy(name, self.call)
        return handle_of(kind, number, *values)


def _exception(name: str, base: type[Exception]) -> type[Exception]:
    return type(name, (base,), {})


def _names(claimed: Any) -> list[str]:
    for name in claimed:
        if type(name) is not str or len(name) > _MAX_NAME or not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError("no name")
    return [name for name in claimed if not name.startswith("__")]


def _copy_back(arguments: tuple[Any, ...], after: Any) -> None:
    """Change mutable arguments in place to what the call left in the candidate's copies."""
    if type(after) not in (tuple, list) or len(after) != len(arguments):
        raise ValueError("other arguments than those of the call")
    for argument, changed in zip(arguments, after, strict=True):
        kind = type(argument)
        if kind in (list, bytearray) and type(changed) is kind:
            argument[:] = changed
        elif (isinstance(argument, dict) and type(changed) is dict) or (kind is set and type(changed) is set):
            argument.clear()
            argument.update(changed)
        elif kind.__module__ == "collections" and kind.__name__ == "deque" and type(changed) is list:
            argument.clear()
            argument.extend(changed)
