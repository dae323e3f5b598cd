"""Progress on the terminal: after two seconds of work the current stage and its count, ``itnet: verify 12/54``.

Nothing is written, and no thread is started, where standard error is not a terminal.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

__all__ = ["DELAY", "Progress", "Stage"]

DELAY = 2.0
_thread = threading.local()
# Seconds between two updates of the line.
_INTERVAL = 0.1


class Stage:
    """One stage of work: call it after every item. Also a context manager: ``with progress.stage(…) as step``."""

    __slots__ = ("_progress", "done", "name", "total")

    def __init__(self, progress: Progress, name: str, total: int | None) -> None:
        self._progress, self.name, self.total, self.done = progress, name, total, 0

    def __call__(self, count: int = 1) -> None:
        """``count`` more items are done."""
        self.done += count
        if self._progress.visible:
            self._progress.show()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *exception: object) -> None:
        return None

    def describe(self) -> str:
        """``verify 12/54``, or the name alone where there is nothing to count."""
        return self.name if self.total is None else f"{self.name} {self.done}/{self.total}"


class Progress:
    """Shows what is being done once it takes longer than ``delay`` seconds; wipes it away at the end.

    May be entered again inside itself: the outermost ``with`` decides when the work began and ended.

    Args:
        stream: Where to write; standard error by default.
        delay: Seconds before anything is shown.
    """

    def __init__(self, stream: TextIO | None = None, delay: float = DELAY) -> None:
        self._given, self._stream, self._delay = stream, stream, delay
        self._depth, self._width, self._last = 0, 0, 0.0
        self._start = 0.0
        self._timer: threading.Timer | None = None
        self._stage: Stage | None = None
        self._lock = threading.Lock()
        self._outer: Progress | None = None
        self.visible = False

    @staticmethod
    def current() -> Progress:
        """The one that is being shown in this thread, or a new one."""
        return getattr(_thread, "active", None) or Progress()

    def __enter__(self) -> Progress:
        self._depth += 1
        if self._depth == 1:
            self._outer, _thread.active = getattr(_thread, "active", None), self
            # Taken now: capture holds back what torch itself writes to standard error.
            self._stream = self._given or sys.stderr
            self._start = time.monotonic()
            if _is_terminal(self._out):
                self._timer = threading.Timer(self._delay, self._appear)
                self._timer.daemon = True
                self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth:
            return
        _thread.active = self._outer
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
        if self.visible:
            self.visible = False
            self._write("")

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Begin the next stage; ``total`` is its number of items, where that is known."""
        self._stage = Stage(self, name, total)
        if self.visible:
            self.show(now=True)
        return self._stage

    def show(self, *, now: bool = False) -> None:
        """Write the current stage over the last one, at most ten times a second unless ``now``."""
        moment = time.monotonic()
        if self._stage is None or not (now or moment - self._last >= _INTERVAL):
            return
        self._last = moment
        self._write(f"itnet: {self._stage.describe()}  ({moment - self._start:.0f} s)")

    @property
    def _out(self) -> TextIO:
        return sys.stderr if self._stream is None else self._stream

    def _appear(self) -> None:
        self.visible = True
        self.show(now=True)

    def _write(self, text: str) -> None:
        text = text[: max(shutil.get_terminal_size().columns - 1, 20)]
        with self._lock:
            blank = " " * max(self._width - len(text), 0)
            try:
                self._out.write(f"\r{text}{blank}" + ("" if text else "\r"))
                self._out.flush()
            except (OSError, ValueError):  # the terminal went away: go on without
                self.visible = False
            self._width = len(text)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # a closed stream
        return False
