"""The candidate's side of the call channel: run its source, then answer calls until the channel closes.

This code shares a process with judged code, which may change or bypass it; the other end relies on nothing here.
Requests and replies are those of the call protocol, with these forms besides, which only a tester uses:

- request: `handle` may be the name of a class; without one, `__getattr__` reads a name of the module.
- data, both ways: {"h": [handle, class]} is an object that the candidate keeps; as what a call returned, and in
  arguments that it changed, {"h": [handle, class, value]} is one that is plain data with names (`codec.plain_of`).
- reply: {"id": n, "callable": true, "coroutine": bool} to `__getattr__`: call it by its name.
- reply: `arguments` beside `raised`: the exception's own, where they are plain; `class`: its class, where announced.
- reply: `args` is left out where the call changed nothing.
"""

from __future__ import annotations

import asyncio
import json
import operator
from collections.abc import Callable, Iterator
from functools import partial
from inspect import CO_COROUTINE
from itertools import islice
from types import BuiltinFunctionType, CoroutineType, FunctionType, MethodType, ModuleType
from typing import Any, NoReturn

from funicular.rewards.sandbox import codec
from funicular.rewards.sandbox.slot.runtime import program
from funicular.rewards.sandbox.slot.runtime.channel import Channel
from funicular.rewards.sandbox.slot.wire import CALLS_FD

MODULE_NAME = "solution"
"""Not `__main__`: what a script does under `if __name__ == "__main__"`, reading standard input, must not run."""
MAX_ITEMS = 100_000
"""Of a generator or an iteration; a longer one does not cross."""
MAX_MESSAGE = 500
MAX_NAMES = 2000
_CALLABLES = (FunctionType, MethodType, partial)


def serve(source: bytes) -> NoReturn:
    """Run `source` as a module, say what it defines, and answer calls one at a time until the other end closes."""

    def run() -> int:
        program.prepare()
        module = program.fresh_module(MODULE_NAME, source)
        status = program.execute(source, module)
        if status == 0:
            _answer_calls(module, Channel(CALLS_FD))
        program.flush_streams()
        return status

    program.end_with(run)


def _answer_calls(module: ModuleType, channel: Channel) -> None:
    server = _Server(module)
    try:
        channel.send(codec.dumps({"ready": announce(module)}))
        while (line := channel.receive()) is not None:
            if line:
                channel.send(server.answer(line))
    except ConnectionError:
        return  # the caller has seen enough


def announce(module: ModuleType) -> dict[str, Any]:
    """Names that can be called: functions, classes, and of these the exceptions with the builtin that they are."""
    functions, classes, exceptions = [], [], {}
    for name, value in module.__dict__.items():
        if type(name) is not str or name.startswith("__") or not callable(value):
            continue
        if not isinstance(value, type):
            functions.append(name)
        elif issubclass(value, BaseException) and value.__module__ == MODULE_NAME:
            exceptions[name] = _builtin_base(value)
        elif value.__module__ == MODULE_NAME:
            classes.append(name)
    return {
        "functions": functions[:MAX_NAMES],
        "coroutines": [name for name in functions[:MAX_NAMES] if _is_coroutine_function(module.__dict__[name])],
        "classes": classes[:MAX_NAMES],
        "exceptions": dict(islice(exceptions.items(), MAX_NAMES)),
    }


class _Server:
    def __init__(self, module: ModuleType) -> None:
        self._names = module.__dict__
        self._kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        """Of kept objects, by `id`."""

    def answer(self, line: bytes) -> bytes:
        request = json.loads(line)  # from the trusted side: the checks of codec.loads are for the other direction
        try:
            reply = self._call(request)
            reply["id"] = request["id"]
            return codec.dumps(reply)
        except codec.NotPlain as error:
            reply = {"opaque": error.type_name}
        except BaseException as error:  # the program's own, SystemExit included
            reply = _raised(error)
        reply["id"] = request["id"]
        return codec.dumps(reply)

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        arguments = codec.decode(request["args"], self._referred)
        keywords = codec.decode(request["kwargs"], self._referred) if "kwargs" in request else {}
        name, handle = request["function"], request.get("handle")
        if name == "__getattr__":
            return self._attribute(handle, *arguments)
        value = self._function(name, handle)(*arguments, **keywords)
        if type(value) is CoroutineType:
            value = asyncio.run(value)
        if not request.get("mutations", True):
            return self._reply(value, None)
        reply = self._reply(value, self._reference_with_value)
        if codec.encode(arguments, self._reference) != request["args"]:
            reply["args"] = codec.encode(arguments, self._reference_with_value)
        return reply

    def _function(self, name: str, handle: int | str | None) -> Callable[..., Any]:
        if handle is not None:
            target = self._object(handle)
            operation = _OPERATIONS.get(name)
            return getattr(target, name) if operation is None else partial(operation, target)
        found = self._names.get(name)
        if callable(found):
            return found
        solution = self._names.get("Solution")
        if isinstance(solution, type) and hasattr(solution, name):
            return getattr(solution(), name)
        raise NameError(f"name {name!r} is not defined")

    def _attribute(self, handle: int | str | None, name: str) -> dict[str, Any]:
        if handle is not None:
            value = getattr(self._object(handle), name)
        elif name in self._names:
            value = self._names[name]
        else:
            raise AttributeError(f"module {MODULE_NAME!r} has no attribute {name!r}")
        if isinstance(value, (*_CALLABLES, BuiltinFunctionType)):
            return {"callable": True, "coroutine": _is_coroutine_function(value)}
        return self._reply(value, self._reference)

    def _reply(self, value: Any, reference: codec.Reference | None) -> dict[str, Any]:
        kind = type(value)
        if hasattr(kind, "__next__") and kind.__module__ != MODULE_NAME:
            return {"value": codec.encode(_items(value), reference)}
        if reference is not None and _can_be_kept(value) and codec.plain_of(value) is None:
            number, name = self._reference(value)
            return {"handle": number, "class": name}
        return {"value": codec.encode(value, reference)}

    def _reference(self, value: Any) -> list[Any]:
        if not _can_be_kept(value):
            raise codec.NotPlain(type(value).__name__)
        number = self._numbers.setdefault(id(value), len(self._kept))
        if number == len(self._kept):
            self._kept.append(value)
        return [number, type(value).__name__]

    def _reference_with_value(self, value: Any) -> list[Any]:
        plain = codec.plain_of(value)
        values = [] if plain is None else [codec.encode(plain, self._reference_with_value)]
        return [*self._reference(value), *values]

    def _referred(self, reference: list[Any]) -> Any:
        return self._kept[reference[0]]

    def _object(self, handle: int | str) -> Any:
        return self._kept[handle] if isinstance(handle, int) else self._names[handle]


def _can_be_kept(value: Any) -> bool:
    return type(value).__module__ == MODULE_NAME or isinstance(value, _CALLABLES)


def _is_coroutine_function(value: Any) -> bool:
    return bool(getattr(getattr(value, "__code__", None), "co_flags", 0) & CO_COROUTINE)


def _items(values: Iterator[Any]) -> list[Any]:
    items = list(islice(values, MAX_ITEMS + 1))
    if len(items) > MAX_ITEMS:
        raise codec.NotPlain(type(values).__name__, f"has more than {MAX_ITEMS} items")
    return items


def _raised(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    try:
        message = str(error)[:MAX_MESSAGE]
    except BaseException:  # a __str__ of the program's
        message = ""
    reply: dict[str, Any] = {"raised": _builtin_base(kind), "message": message}
    if kind.__module__ == MODULE_NAME:
        reply["class"] = kind.__name__
    try:
        arguments = codec.encode(error.args)
        if len(codec.dumps(arguments)) <= 8 * MAX_MESSAGE:
            reply["arguments"] = arguments
    except codec.NotPlain:
        return reply
    return reply


def _builtin_base(kind: type[BaseException]) -> str:
    return next((base.__name__ for base in kind.__mro__ if base.__module__ == "builtins"), "")


def _iterate(value: Any) -> list[Any]:
    return _items(iter(value))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "__len__": len,
    "__bool__": bool,
    "__iter__": _iterate,
    "__str__": str,
    "__repr__": repr,
    "__call__": lambda function, *arguments, **keywords: function(*arguments, **keywords),
    "__setattr__": setattr,
    **{name: getattr(operator, name) for name in ("__getitem__", "__setitem__", "__delitem__", "__contains__")},
}
"""What a handle can do besides its methods. No `__eq__`: equality that judged code decides proves nothing."""
