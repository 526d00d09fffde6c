"""Holds a real generator at a call of its next install, so that a test can stop or kill a process exactly there."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import psutil

_PATIENCE_S = 60.0


class FakeHeldLink:
    """The engine's link, but one call waits, once, until it is let go."""

    def __init__(self, link: Any, call: str) -> None:
        self._link = link
        self._call = call
        self._go = asyncio.Event()
        self.reached = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._link, name)
        return self._held(method) if name == self._call and not self.reached else method

    def _held(self, method: Any) -> Any:
        async def held(*arguments: Any, **options: Any) -> Any:
            self.reached = True
            await self._go.wait()
            return await method(*arguments, **options)

        return held

    def let_go(self) -> None:
        self._go.set()


class HeldInstall:
    """The next install of a generator, which waits before a call of `EngineLink`."""

    def __init__(self, actor: Any, call: str) -> None:
        self._actor = actor
        self._call = call
        self.processes: dict[str, psutil.Process] = {}
        """`actor`, `core`, and each engine process of a tensor-parallel engine by its number."""

    async def arm(self) -> None:
        call = self._call

        def hold(generator: Any) -> int:
            generator._installer._engine = FakeHeldLink(generator._installer._engine, call)
            return os.getpid()

        actor = psutil.Process(await self._actor.__ray_call__.remote(hold))
        self.processes = {"actor": actor}
        for process in actor.children(recursive=True):
            command = " ".join(process.cmdline())
            if "EngineCore" in command:
                self.processes["core"] = process
            elif "Worker_TP" in command:
                self.processes[command.partition("Worker_TP")[2][0]] = process

    async def reached(self) -> str:
        """Wait until the call is made; the state of the weights then."""

        def look(generator: Any) -> tuple[bool, str]:
            return generator._installer._engine.reached, str(generator._installer.state)

        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            reached, state = await self._actor.__ray_call__.remote(look)
            if reached:
                return state
            await asyncio.sleep(0.02)
        raise TimeoutError(f"no install came to {self._call} within {_PATIENCE_S:.0f} s")

    async def let_go(self) -> None:
        """Make the call."""
        await self._actor.__ray_call__.remote(lambda generator: generator._installer._engine.let_go())

    async def kill_inside(self, process: str) -> None:
        """Have the call made while a process of the engine cannot answer it; then kill that process."""
        self.processes[process].send_signal(signal.SIGSTOP)
        await self.let_go()
        await asyncio.sleep(0.3)
        self.processes[process].kill()
