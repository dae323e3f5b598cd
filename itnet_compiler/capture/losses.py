"""What a captured graph would silently lose, kept or refused with a reason: randomness, gradients, checkpointing."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint

from ..errors import CaptureError
from .custom_functions import Kept, functions_kept

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
def nothing_lost() -> Iterator[Kept]:
    """Keep or refuse, while a model is traced, what happens in Python and not in operators.

    Draws from Python's or NumPy's generator are refused (a graph would repeat one draw for ever), and activation
    checkpointing (a graph keeps what was to be recomputed). Calls of a ``torch.autograd.Function`` are kept whole
    where that can be done (a graph would differentiate their forward).
    """
    with (
        foreign_randomness_kept(),
        _no_checkpoints(),
        functions_kept(_refuse_function) as kept,
        _no_foreign_randomness(),
    ):
        yield kept


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
def _no_checkpoints() -> Iterator[None]:
    thread = threading.get_ident()
    checkpoint = torch.utils.checkpoint._checkpoint_without_reentrant_generator

    def refuse_checkpoint(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            _refuse_checkpoint()
        return checkpoint(*args, **kwargs)

    torch.utils.checkpoint._checkpoint_without_reentrant_generator = refuse_checkpoint
    try:
        yield
    finally:
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


def _refuse_function(cls: type) -> None:
    if cls is torch.utils.checkpoint.CheckpointFunction:
        _refuse_checkpoint()
    package = cls.__module__.partition(".")[0]
    if package in _KERNELS:
        raise CaptureError(
            f"forward calls a kernel of {package} ({cls.__qualname__}), which is no operator of torch's",
            remedy=f"to have it captured use {_KERNELS[package]}",
        )
