"""What a run shows in the terminal: phases of the start, one line per step, a summary.

On a terminal a last line says what is going on and for how long. Anywhere else (a file, `ray job logs`) there
are plain lines without control codes. Every method may be called from any thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from funicular.launch.progress_text import RunSummary, duration, evaluation_line, step_line, summary_lines

_RECENT_STEPS = 10  # what the time that is left is judged by


class _Console(Console):
    """Rich ends the program when its output is closed (`funicular train | head`); a training run goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """Prints. Its owner calls `close`, or the terminal's cursor stays hidden."""

    def __init__(self, total_steps: int, stream: TextIO | None = None) -> None:
        """`stream`: None is standard output."""
        stream = stream or sys.stdout
        self._total = total_steps
        terminal = stream.isatty()
        # force_terminal: FORCE_COLOR in a CI's environment must not put control codes into a log file.
        self._console = _Console(
            file=stream, force_terminal=terminal, highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self._lock = threading.Lock()
        self._step_seconds: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._doing: list[tuple[str, float]] = []
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        if terminal:
            self._live = Live(get_renderable=self._status, console=self._console, transient=True)
            self._live.start()

    @contextmanager
    def phase(self, text: str) -> Iterator[None]:
        """Show that something long is going on, when it ended, how long it took, and whether it failed."""
        start = time.monotonic()
        if self._live is None:
            self._print(f"{text}...")
        with self._lock:
            self._doing.append((text, start))
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            with self._lock:
                self._doing.remove((text, start))
            style = "green" if outcome == "done" else "bold red"
            self._print(f"{text}: {outcome} in {time.monotonic() - start:.1f} s", style)

    @contextmanager
    def doing(self, text: str) -> Iterator[None]:
        """Name what is going on in the last line of a terminal; prints nothing elsewhere."""
        entry = (text, time.monotonic())
        with self._lock:
            self._doing.append(entry)
        try:
            yield
        finally:
            with self._lock:
                self._doing.remove(entry)

    def event(self, text: str) -> None:
        """One line about something that happened."""
        self._print(text, "cyan")

    def error(self, text: str) -> None:
        """One line that a person should act on."""
        self._print(f"WARNING: {text}", "bold red")

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line for a training step, or for an evaluation on its own. Other metrics print nothing."""
        if "time/step_s" in metrics:
            self._step_seconds.append(metrics["time/step_s"])
            mean = sum(self._step_seconds) / len(self._step_seconds)
            self._print(step_line(step, self._total, metrics, mean * max(0, self._total - step)))
        elif any(key.startswith("eval/") for key in metrics):
            self._print(evaluation_line(step, metrics), "bold")

    def summary(self, summary: RunSummary) -> None:
        """The block at the end of a run."""
        self._print("\n".join(["", *summary_lines(summary)]), "bold")

    def close(self) -> None:
        """Give the terminal back. Safe to call twice; the other methods still print."""
        if self._live is not None:
            self._live.stop()

    def _print(self, text: str, style: str | None = None) -> None:
        self._refresh()  # or what ended a moment ago would be drawn once more below the line
        self._console.print(Text(text), style=style)

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _status(self) -> Spinner | Text:
        with self._lock:
            doing = list(self._doing)
        if not doing:
            return Text("")
        now = time.monotonic()
        self._spinner.update(text=Text("  ".join(f"{text} {duration(now - start)}" for text, start in doing)))
        return self._spinner
