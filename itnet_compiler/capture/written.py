"""Attributes that ``forward`` writes in every call: further results of the graph, stored where forward stores them.

What is written must be a tensor, a size, or a tuple of these: a graph computes it. What was there before must not
matter, unless it is a tensor of the same shape and dtype on a module, which a graph looks up at each call. Whether it
matters is found out by tracing with an object in its place that cannot be looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import SymInt, Tensor, nn
from torch.utils import _pytree as pytree

from .belongings import Belongings

__all__ = ["LookedAt", "Write", "hide", "make_inputs", "owner_of", "writable", "write_back"]


@dataclass(frozen=True)
class Write:
    """One attribute that is written.

    Attributes:
        owner: Path of the module, or of an object that a module holds.
        name: Of the attribute.
        kind: Type of what must be there before; a size is a plain ``int`` then.
        like: Shape, dtype and device of the tensor there, where forward may read it; None where it does not.
        structure: Of what is written; its leaves are results of the graph.
    """

    owner: str
    name: str
    kind: type
    like: tuple[Any, ...] | None = None
    structure: pytree.TreeSpec | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Where it is written."""
        return self.owner, self.name

    def fits(self, root: nn.Module) -> bool:
        """Whether what is there now is what the graph was captured for."""
        try:
            value = getattr(owner_of(root, self.owner), self.name)
        except AttributeError:
            return False
        if self.kind is not Tensor:
            return type(value) is self.kind
        return isinstance(value, Tensor) and (self.like is None or _like(value) == self.like)


class LookedAt(BaseException):
    """The former value of an attribute matters. No ``Exception``, since user code may catch those."""


class _Hidden:
    """Stands for a value that must not matter; ``is`` and ``type()`` are all that can be asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise LookedAt


def _look(*given: Any) -> Any:
    raise LookedAt


_OPERATORS = (
    "bool len iter next getitem setitem contains call eq ne lt le gt ge hash index int float complex repr str format"
    " add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul neg pos abs"
    " invert and rand or ror xor rxor lshift rshift enter exit copy deepcopy reduce reduce_ex"
)
for _operator in _OPERATORS.split():
    setattr(_Hidden, f"__{_operator}__", _look)


def owner_of(root: nn.Module, path: str) -> Any:
    """The module, or object that a module holds, at ``path``. Raises ``AttributeError``."""
    return functools.reduce(getattr, path.split("."), root) if path else root


def writable(
    root: nn.Module,
    held: Belongings,
    path: str,
    container: dict[str, Any],
    before: dict[str, Any],
    names: Sequence[str],
) -> tuple[Write, ...]:
    """What was written to a dictionary of attributes, as far as a graph could do that.

    Args:
        root: The module that was traced.
        held: What it held before.
        path: Of the module or object whose attributes (or buffers) they are.
        container: The dictionary.
        before: What it held.
        names: The attributes that are others now.
    """
    try:
        owner = owner_of(root, path)
    except AttributeError:
        return ()
    of_module = isinstance(owner, nn.Module)
    is_buffer = of_module and container is owner._buffers
    if (container is not owner.__dict__ and not is_buffer) or not container.keys() >= set(names) <= before.keys():
        return ()
    found = [_write(path, name, container[name], before[name], of_module, is_buffer) for name in names]
    # A tensor of two names is one to the tracer, which would look both up under one of them.
    return tuple(one for one in found if one and not (one.like and held.is_shared(before[one.name])))


def _write(path: str, name: str, now: Any, then: Any, of_module: bool, is_buffer: bool) -> Write | None:
    if isinstance(now, Tensor) and isinstance(then, Tensor) and not isinstance(now, nn.Parameter):
        same = [str(size) for size in now.shape] == [str(size) for size in then.shape]
        if of_module and same and _like(now)[1:] == _like(then)[1:]:
            return Write(path, name, Tensor, _like(then))
        return None if is_buffer else Write(path, name, Tensor)
    if isinstance(now, SymInt) and type(then) is int and not of_module:  # one of a module is part of the key of a call
        return Write(path, name, int)
    if type(now) is tuple and type(then) is tuple and all(isinstance(one, (Tensor, SymInt)) for one in now):
        return Write(path, name, tuple)
    return None


def _like(value: Tensor) -> tuple[Any, ...]:
    return tuple(value.shape), value.dtype, value.device


def hide(root: nn.Module, writes: Sequence[Write]) -> None:
    """Put objects that cannot be looked at in the place of former values that must not matter."""
    for write in writes:
        if write.like is None:
            owner_of(root, write.owner).__dict__[write.name] = _Hidden()


def make_inputs(clone: nn.Module, writes: Sequence[Write]) -> None:
    """Make tensors that forward may read and then replaces inputs of the trace, as buffers are.

    Those in plain attributes are constants to the exporter: it would let forward branch on their values.
    """
    for write in writes:
        module = owner_of(clone, write.owner)
        if write.like is not None and write.name in module.__dict__:
            module._buffers[write.name] = module.__dict__.pop(write.name)
            module._non_persistent_buffers_set.add(write.name)


def write_back(root: nn.Module, writes: Sequence[Write], results: Sequence[Any]) -> None:
    """Write what a graph has computed, in the order in which it was captured."""
    leaves = iter(results)
    for write in writes:
        assert write.structure is not None
        value = [next(leaves) for _ in range(write.structure.num_leaves)]
        setattr(owner_of(root, write.owner), write.name, pytree.tree_unflatten(value, write.structure))
