"""A time limit for a backward pass: a Python loop over a long sequence may take minutes to differentiate."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

__all__ = ["TooSlow", "backward_limited"]


class TooSlow(Exception):
    """The backward pass took longer than it was given."""


@contextlib.contextmanager
def backward_limited(outputs: Sequence[Tensor], seconds: float) -> Iterator[None]:
    """Raise ``TooSlow`` from a backward pass of ``outputs`` in the block at the first node after ``seconds``."""
    deadline = time.monotonic() + seconds

    def check(_: Any) -> None:
        if time.monotonic() > deadline:
            raise TooSlow

    waiting: list[Any] = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    handles = []
    try:
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            handles.append(node.register_prehook(check))
            waiting += [source for source, _ in node.next_functions]
        yield
    finally:
        for handle in handles:
            handle.remove()
