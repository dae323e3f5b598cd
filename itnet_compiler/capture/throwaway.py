"""The clone of a module that is traced and thrown away."""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .belongings import Belongings
from .clone import shallow_clone
from .records import opened
from .signature import Call, is_size
from .written import LookedAt, Write, hide, owner_of, writable

__all__ = ["StateWritten", "open_records", "plain_sizes", "throwaway_clone", "watch_belongings"]


class StateWritten(CaptureError):
    """A forward writes attributes. Often it does so in its first call only (a cache of positions).

    Attributes:
        writes: What it writes, where a graph could do that too, should what was there before not matter.
    """

    writes: tuple[Write, ...] = ()


def throwaway_clone(model: nn.Module, call: Call) -> nn.Module:
    """A clone of ``model`` to be traced at ``call``."""
    clone = shallow_clone(model)
    for hooks in (clone._forward_hooks, clone._forward_pre_hooks):
        hooks.clear()  # those of the root run around the graph
    _name_extra_arguments(clone, call)
    _bypass_own_call(clone)
    return clone


def _name_extra_arguments(clone: nn.Module, call: Call) -> None:
    """Give tensors passed through ``**kwargs`` parameters of their own, or torch.export cannot make them symbolic."""
    original = type(clone)
    signature = inspect.signature(original.forward)
    known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    extra = [name for name in call.kwargs if name not in {p.name for p in known}]
    if not extra or "forward" in clone.__dict__:
        return

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return original.forward(self, *args, **kwargs)

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    forward.__signature__ = signature.replace(parameters=[*known, *named])  # type: ignore[attr-defined]
    clone.__class__ = types.new_class(
        original.__name__, (original,), exec_body=lambda body: body.update(forward=forward)
    )


def _bypass_own_call(clone: nn.Module) -> None:
    """A class may override ``__call__``; what it does there happens around the graph as around ``forward``."""
    original = type(clone)
    if original.__call__ is not nn.Module.__call__:
        call = {"__call__": nn.Module.__call__}
        clone_class = types.new_class(original.__name__, (original,), exec_body=lambda body: body.update(call))
        object.__setattr__(clone, "__class__", clone_class)


def plain_sizes(clone: nn.Module, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with ``torch.Size`` as tuples, which torch.export can take; the clone makes them what they were."""
    leaves, structure = pytree.tree_flatten((call.args, call.kwargs), is_leaf=is_size)
    if not any(map(is_size, leaves)):
        return call.args, call.kwargs
    inner = clone.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = structure.flatten_up_to((args, kwargs))
        sizes = [torch.Size(new) if is_size(old) else new for old, new in zip(leaves, given, strict=True)]
        args, kwargs = pytree.tree_unflatten(sizes, structure)
        return inner(*args, **kwargs)

    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    clone.__dict__["forward"] = forward
    plain: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_unflatten(
        [tuple(leaf) if is_size(leaf) else leaf for leaf in leaves], structure
    )
    return plain


def open_records(clone: nn.Module) -> None:
    """Make the forward of a throw-away clone return the tensors of objects that it makes (``records``)."""
    inner = clone.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        held = [value for module in clone.modules() for value in vars(module).values()]
        given = pytree.tree_leaves((args, kwargs))
        return opened(
            result, [*held, *(item for one in held if isinstance(one, (list, tuple)) for item in one), *given]
        )

    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    clone.__dict__["forward"] = forward


def watch_belongings(clone: nn.Module, writes: tuple[Write, ...] = ()) -> None:
    """Make the forward of a throw-away clone raise ``StateWritten`` if it writes attributes; its class stays.

    With ``writes`` it must write these and nothing else, and returns its result together with a list of them; it raises
    ``LookedAt`` if it does otherwise.
    """
    inner = clone.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        held = Belongings(clone, {"its argument": (args, kwargs)})
        try:
            hide(clone, writes)
            result = inner(*args, **kwargs)
            changed = held.changed()
            found = [writable(clone, held, *each) for each in held.replaced()]
            values = [getattr(owner_of(clone, write.owner), write.name) for write in writes]
        finally:
            held.restore()
        if not changed and held.holds(result):
            raise CaptureError("forward returns a list or dict that it was given; a graph would return another one")
        possible = tuple(write for each in found for write in each)
        if writes and {write.place for write in possible} != {write.place for write in writes}:
            raise LookedAt
        if len(possible) != len(changed) or (changed and not writes):
            raise _state_written(changed, possible if len(possible) == len(changed) else ())
        return (result, values) if writes else result

    # A hook would do too, but shut the fast path of an encoder layer.
    forward.__signature__ = inspect.signature(inner)  # type: ignore[attr-defined]
    clone.__dict__["forward"] = forward


def _state_written(changed: list[str], writes: tuple[Write, ...]) -> StateWritten:
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    problem = StateWritten(
        f"forward writes {changed[0]}{more}, which a captured graph would not do",
        remedy="return it, or keep a tensor that is written in place as a buffer",
        node=changed[0].rpartition(".")[0] or None,
    )
    problem.writes = writes
    return problem
