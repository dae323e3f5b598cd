"""Long loops noticed when they begin: tracing a thousand steps takes a minute, tracing sixteen says as much.

A Python loop over an axis asks for its size as a plain number. While ``long_loops_refused()`` is active that question
ends the trace, if it is asked in a line that looks like a loop and the answer is large. The line is a hint and no
more: whoever catches ``LongLoop`` traces shorter examples, and the whole where those do not do.
"""

from __future__ import annotations

import contextlib
import linecache
import re
import sys
import threading
from collections.abc import Iterator

from torch.fx.experimental.sym_node import SymNode

__all__ = ["LongLoop", "long_loops_refused"]

# More steps than this make a loop long.
_LONG = 64
# A loop, or a list with a place for every step: ``[None] * steps``.
_LOOPS = re.compile(r"\b(for|range)\b|\] *\*|\* *\[")


class LongLoop(BaseException):
    """A loop over an axis of size ``length`` begins. No ``Exception``, since tracing catches those in places."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.length = length


@contextlib.contextmanager
def long_loops_refused() -> Iterator[None]:
    """Raise ``LongLoop`` where this thread traces into a loop over an axis that is long."""
    thread, original = threading.get_ident(), SymNode.guard_int

    def guard_int(self: SymNode, file: str, line: int) -> int:
        if threading.get_ident() == thread and (length := _length(self)) > _LONG and _in_loop():
            raise LongLoop(length)
        return original(self, file, line)

    SymNode.guard_int = guard_int  # type: ignore[method-assign]
    try:
        yield
    finally:
        SymNode.guard_int = original  # type: ignore[method-assign]


def _length(size: SymNode) -> int:
    """Example of the size that a number is made of; 0 where it is made of several, or of none."""
    symbols = size.expr.free_symbols
    known = getattr(size.shape_env, "backed_var_to_val", {})
    return int(known.get(next(iter(symbols)), 0)) if len(symbols) == 1 else 0


def _in_loop() -> bool:
    """Whether the innermost line outside torch and this package begins a loop."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if not name.startswith(("torch.", "itnet_compiler.")) and name != "torch":
            return _LOOPS.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno)) is not None
        frame = frame.f_back  # type: ignore[assignment]
    return False
