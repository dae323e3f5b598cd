"""What a forward asks of its surroundings in Python while it is traced: a graph is for that answer only."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["answers", "questions_noted"]

_lock = threading.RLock()


@contextlib.contextmanager
def questions_noted() -> Iterator[set[str]]:
    """Yields the set of kinds of questions that code outside torch asks in this thread, in the block.

    ``grad``: whether gradients are enabled; ``requires_grad``: whether a tensor needs one; ``layout``: its strides.
    """
    asked: set[str] = set()
    thread = threading.get_ident()

    def note(kind: str) -> None:
        asker = str(sys._getframe(2).f_globals.get("__name__"))
        if threading.get_ident() == thread and not asker.startswith(("torch.", "itnet_compiler.")):
            asked.add(kind)

    is_grad_enabled, is_contiguous, stride = torch.is_grad_enabled, Tensor.is_contiguous, Tensor.stride
    requires_grad: Any = torch._C.TensorBase.requires_grad

    def asks_grad() -> bool:
        note("grad")
        return is_grad_enabled()

    def asks_contiguous(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        note("layout")
        return is_contiguous(tensor, *args, **kwargs)

    def asks_stride(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        note("layout")
        return stride(tensor, *args, **kwargs)

    def asks_requires_grad(tensor: Tensor) -> Any:
        note("requires_grad")
        return requires_grad.__get__(tensor)

    with _lock:
        torch.is_grad_enabled = asks_grad
        patched: Any = Tensor
        patched.is_contiguous, patched.stride = asks_contiguous, asks_stride
        patched.requires_grad = property(asks_requires_grad, requires_grad.__set__)
        try:
            yield asked
        finally:
            torch.is_grad_enabled = is_grad_enabled
            del patched.is_contiguous, patched.stride, patched.requires_grad


def answers(asked: set[str], root: nn.Module, leaves: list[Tensor]) -> tuple[Any, ...]:
    """What a forward that asks such questions of a call with these tensors is told, as part of a key."""
    found: list[Any] = []
    if asked & {"grad", "requires_grad"}:
        found.append(torch.is_grad_enabled())
    if "requires_grad" in asked:
        found.append(tuple([tensor.requires_grad for tensor in (*leaves, *root.parameters(), *root.buffers())]))
    if "layout" in asked:
        found.append(tuple([(t.is_contiguous(), _order(t)) for t in leaves]))
    return tuple(found)


def _order(tensor: Tensor) -> tuple[int, ...]:
    """Axes from the longest stride to the shortest, broadcast ones marked."""
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], axis))
    return (*order, *(axis for axis in order if strides[axis] == 0))
