"""What a captured graph would silently lose, refused with a reason: hooks, foreign randomness, custom gradients."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError

__all__ = ["no_custom_gradients", "no_foreign_randomness", "refuse_hooks"]


def refuse_hooks(model: nn.Module) -> None:
    """Raise ``CaptureError`` for hooks below the root: a graph runs no modules."""
    for path, module in model.named_modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        if path and (hooked or module._backward_pre_hooks):
            raise CaptureError(
                f"module {path!r} ({type(module).__name__}) has hooks, which a captured graph would not run",
                remedy="remove the hooks before unify, or register them on the root module",
                node=path,
            )


@contextlib.contextmanager
def no_foreign_randomness() -> Iterator[None]:
    """Refuse a model that draws from Python's or NumPy's generator: a graph would repeat one draw for ever."""
    import numpy as np

    def states() -> tuple[object, ...]:
        _, keys, position, *_ = np.random.get_state(legacy=True)
        return random.getstate(), bytes(keys), position  # type: ignore[arg-type]

    before = states()
    yield
    if states() != before:
        raise CaptureError(
            "forward draws from Python's or NumPy's random generator; a captured graph would repeat one draw for ever",
            remedy="draw with torch (torch.rand …) instead",
        )


@contextlib.contextmanager
def no_custom_gradients() -> Iterator[None]:
    """Refuse a model that applies a ``torch.autograd.Function``: a graph differentiates its forward instead."""
    thread, original = threading.get_ident(), torch.autograd.Function.__dict__["apply"]

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and not cls.__module__.startswith("torch."):
            raise CaptureError(
                f"forward applies {cls.__qualname__}, whose own backward a captured graph would replace",
                remedy="unify the modules around it, or make it a torch.library.custom_op with register_autograd",
            )
        return original.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = original  # type: ignore[method-assign]
