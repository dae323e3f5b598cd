"""What a captured graph would silently lose, refused with a reason: randomness, gradients, checkpointing."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint

from ..errors import CaptureError

__all__ = ["foreign_randomness_kept", "nothing_lost"]


@contextlib.contextmanager
def foreign_randomness_kept() -> Iterator[None]:
    """Put Python's and NumPy's random generators back as they were when the block began."""
    import numpy as np

    before = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextlib.contextmanager
def nothing_lost() -> Iterator[None]:
    """Refuse, while a model is traced, what happens in Python and not in operators, and so would not be in a graph.

    Draws from Python's or NumPy's generator (a graph would repeat one draw for ever), the backward of a
    ``torch.autograd.Function`` (a graph differentiates its forward instead), activation checkpointing (a graph keeps
    what was to be recomputed).
    """
    with foreign_randomness_kept(), _patched(), _no_foreign_randomness():
        yield


@contextlib.contextmanager
def _no_foreign_randomness() -> Iterator[None]:
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
def _patched() -> Iterator[None]:
    thread = threading.get_ident()
    functions: Any = torch.autograd.function
    apply, inside = torch.autograd.Function.__dict__["apply"], functions._is_setup_context_defined
    checkpoint = torch.utils.checkpoint._checkpoint_without_reentrant_generator

    def refuse(cls: Any) -> None:
        if threading.get_ident() == thread and isinstance(cls, type):
            if cls is torch.utils.checkpoint.CheckpointFunction:
                _refuse_checkpoint()
            if not cls.__module__.startswith("torch."):
                raise _custom_gradient(cls)

    def refuse_function(cls: type, *args: Any, **kwargs: Any) -> Any:
        refuse(cls)
        return apply.__get__(None, cls)(*args, **kwargs)

    def refuse_inside(function: Any) -> Any:
        """What ``apply`` itself calls: an alias of it (``f = F.apply``) was taken before it could be replaced."""
        refuse(sys._getframe(1).f_locals.get("cls"))
        return inside(function)

    def refuse_checkpoint(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            _refuse_checkpoint()
        return checkpoint(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(refuse_function)  # type: ignore[method-assign, assignment]
    functions._is_setup_context_defined = refuse_inside
    torch.utils.checkpoint._checkpoint_without_reentrant_generator = refuse_checkpoint
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]
        functions._is_setup_context_defined = inside
        torch.utils.checkpoint._checkpoint_without_reentrant_generator = checkpoint


def _refuse_checkpoint() -> None:
    raise CaptureError(
        "forward recomputes activations (torch.utils.checkpoint), which a graph would keep; what is inside is captured"
    )


# Packages whose kernels are no operators of torch's: what to use in their place.
_KERNELS = {
    "flash_attn": "attn_implementation='sdpa', or torch.nn.functional.scaled_dot_product_attention",
    "xformers": "torch.nn.functional.scaled_dot_product_attention",
    "mamba_ssm": "the model's own plain torch path (in transformers: uninstall mamba_ssm)",
    "causal_conv1d": "the model's own plain torch path (in transformers: uninstall causal_conv1d)",
    "fla": "the model's own plain torch path",
}


def _custom_gradient(cls: type) -> CaptureError:
    package = cls.__module__.partition(".")[0]
    if package in _KERNELS:
        return CaptureError(
            f"forward calls a kernel of {package} ({cls.__qualname__}), which is no operator of torch's",
            remedy=f"to have it captured use {_KERNELS[package]}",
        )
    return CaptureError(
        f"forward applies {cls.__qualname__}, whose own backward a captured graph would replace",
        remedy="to have it captured make it a torch.library.custom_op with register_autograd",
    )
