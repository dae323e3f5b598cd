"""Hooks on modules inside a graph: a graph runs no modules, so it would not run them either."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from ..errors import CaptureError

__all__ = ["HOOKS", "fires", "is_idle", "refuse_hooks"]

# Where a module keeps its hooks.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

_RECORDER = "transformers.utils.output_capturing"


def fires(hooks: Iterable[Mapping[Any, Any]]) -> bool:
    """Whether there is a hook that has an effect outside the call that it is traced in.

    transformers leaves hooks on layers that record hidden states while a call of the model above asks for them. Inside
    such a call they are traced with it; for anyone who is not within one they do nothing.
    """
    return any(not is_idle(hook) for store in hooks for hook in store.values())


def is_idle(hook: Any) -> bool:
    """Whether it is a hook that transformers has left, outside a call that asks for hidden states."""
    recorder = sys.modules.get(_RECORDER)
    if recorder is None or getattr(hook, "__module__", "") != _RECORDER:
        return False
    active = getattr(recorder, "_active_collector", None)
    return active is not None and active.get() is None


def refuse_hooks(model: nn.Module) -> None:
    """Raise ``CaptureError`` for hooks below the root."""
    for path, module in model.named_modules():
        if path and fires(module.__dict__[kind] for kind in HOOKS):
            raise CaptureError(
                f"module {path!r} ({type(module).__name__}) has hooks, which a captured graph would not run",
                remedy="remove the hooks, or register them on the module itself",
                node=path,
            )
