"""Registering an operator of ours with torch: kernel, fake and gradient at once."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["keep_nothing", "outside_dynamo", "register"]


def register(
    library: torch.library.Library,
    name: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> None:
    """Give ``itnet::name``, whose schema ``library`` defines, its parts; as of ``torch.library``, for every device."""
    library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"itnet::{name}", fake, lib=library)
    torch.library.register_autograd(f"itnet::{name}", backward, setup_context=setup_context, lib=library)


def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A ``setup_context`` for operators whose backward refuses: that needs nothing."""


def outside_dynamo(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a kernel that torch.compile does not look into. It is not loaded for that: it takes a second."""

    @functools.wraps(function)
    def kernel(*args: Any) -> Any:
        return (function if "torch._dynamo" not in sys.modules else hidden())(*args)

    @functools.cache
    def hidden() -> Callable[..., Any]:
        return torch.compiler.disable(function)

    return kernel
