"""Run Python source as CPython runs a script, in a process that was forked from a warm interpreter.

The job's process must look fresh: its own standard streams, `__main__`, random state, and the end that CPython
gives a script: threads joined, exit functions run, globals released, streams flushed.
"""

from __future__ import annotations

import atexit
import builtins
import gc
import io
import linecache
import os
import random
import sys
import threading
import traceback
from _sitebuiltins import Quitter, _Helper
from collections.abc import Callable
from functools import partial
from importlib.util import decode_source
from types import ModuleType
from typing import Any, NoReturn

from funicular.rewards.sandbox.slot.wire import EXIT_MEMORY, STDERR_FD, STDIN_FD, STDOUT_FD

FILE_NAME = "main.py"
_STDOUT_BUFFER = 1 << 16
_TRACEBACK_FRAMES = 12
_RECURSION_LIMIT = 1000
_EXIT_FLUSH_FAILED = 120
"""CPython's exit status when output could not be written at the end."""


def run_program(source: bytes) -> NoReturn:
    """Run `source` as `__main__` and end the process with the status that `python main.py` would have had;
    a MemoryError that nobody caught gives `wire.EXIT_MEMORY`."""

    def run() -> int:
        prepare()
        module = fresh_module("__main__", source)
        return _finish(execute(source, module), module)

    end_with(run)


def end_with(run: Callable[[], int]) -> NoReturn:
    """End the process with the status that `run` returns, and with 1 where it raises: nothing of a job may go on
    in the code of the slot host that forked it."""
    status = 1
    try:
        status = run()
    except BaseException as error:
        _report(error)
    finally:
        os._exit(status)


def prepare() -> None:
    """Give the forked process what it must not share with the slot host: streams, arguments, random state."""
    sys.stdin = sys.__stdin__ = _open_stream(STDIN_FD, "<stdin>", "r")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _open_stream(STDOUT_FD, "<stdout>", "w")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _open_stream(STDERR_FD, "<stderr>", "w")  # type: ignore[misc]
    sys.argv = [FILE_NAME]
    # Many programs end with exit(), which the module `site` defines; slot hosts run without it.
    end_of_file: Any = "Ctrl-D (i.e. EOF)"
    vars(builtins).update(exit=Quitter("exit", end_of_file), quit=Quitter("quit", end_of_file), help=_Helper())
    gc.enable()
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    # The frames of the slot host count too; a program gets the depth that it has when it runs alone.
    sys.setrecursionlimit(_RECURSION_LIMIT + _stack_depth())


def fresh_module(name: str, source: bytes) -> ModuleType:
    """An empty module for `source`, registered as `name` and as `__main__`; tracebacks find the source's lines."""
    module = ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__=FILE_NAME, __annotations__={}, __cached__=None)
    sys.modules["__main__"] = sys.modules[name] = module
    lazy: Any = (partial(decode_source, source),)  # linecache calls it when the first traceback needs a line
    linecache.cache[FILE_NAME] = lazy
    return module


def execute(source: bytes, module: ModuleType) -> int:
    """Compile and run `source` in `module`. Returns the exit status that its end means; reports an exception on
    sys.stderr as CPython does."""
    try:
        exec(compile(source, FILE_NAME, "exec", dont_inherit=True), module.__dict__)
    except SystemExit as error:
        return _exit_status(error)
    except MemoryError as error:
        # Its frames hold what filled the memory.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        os.write(STDERR_FD, b"MemoryError\n")
        return EXIT_MEMORY
    except BaseException as error:
        _report(error)
        return 1
    return 0


def flush_streams() -> bool:
    """Flush standard output and error, the first ones and what the program put in their place. False: one failed."""
    flushed = True
    for stream in {id(stream): stream for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)}.values():
        try:
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except BaseException:  # the program's own object may raise anything
            flushed = False
    return flushed


def _finish(status: int, module: ModuleType) -> int:
    _ignore_errors(threading._shutdown)  # type: ignore[attr-defined]
    _ignore_errors(atexit._run_exitfuncs)
    flushed = flush_streams()
    # What the program put in their place may need its globals, which go now.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    # Files that the program opened and left open write their buffers when their last name goes.
    _ignore_errors(partial(_release_globals, module))
    flushed &= flush_streams()
    return status if flushed else status or _EXIT_FLUSH_FAILED


def _release_globals(module: ModuleType) -> None:
    names = module.__dict__
    for name in list(names):
        if name != "__builtins__":
            names[name] = None


def _ignore_errors(step: Callable[[], object]) -> None:
    """One step of the end. As in CPython an error in it is shown and does not change the exit status."""
    try:
        step()
    except BaseException as error:
        _report(error)


def _exit_status(error: SystemExit) -> int:
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return int.__and__(code, 0xFF) if int.bit_length(code) < 64 else 0xFF
    _ignore_errors(partial(print, code, file=sys.stderr))
    return 1


def _report(error: BaseException) -> None:
    """Print as CPython does, with the last frames only; a program may have set its own sys.excepthook."""
    try:
        here = error.__traceback__
        shown = error.with_traceback(here.tb_next if here is not None else None)
        if sys.excepthook is not sys.__excepthook__:
            sys.excepthook(type(shown), shown, shown.__traceback__)
        else:
            traceback.print_exception(shown, limit=-_TRACEBACK_FRAMES)
    except BaseException:  # a hook, a __str__ or a stream of the program: there is nobody left to tell
        os.write(STDERR_FD, b"an exception that could not be printed\n")


def _open_stream(descriptor: int, name: str, mode: str) -> io.TextIOWrapper:
    """As CPython opens it where no locale is set: UTF-8, and bytes that are none pass through both ways."""
    raw: Any = io.FileIO(descriptor, mode, closefd=False)
    raw.name = name
    buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw, _STDOUT_BUFFER)
    is_error = descriptor == STDERR_FD
    stream: Any = io.TextIOWrapper(
        buffer,
        encoding="utf-8",
        errors="backslashreplace" if is_error else "surrogateescape",
        newline="\n",
        line_buffering=is_error,
    )
    stream.mode = mode
    return stream


def _stack_depth() -> int:
    depth = 0
    frame = sys._getframe().f_back
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth
