"""Call signatures: which arguments a call has, apart from the sizes of its tensors, and the tensors in it.

A model called as ``model(x, mask=None)`` and as ``model(x)`` is called with the same signature; arguments equal to
their default are left out, and positional arguments go by name.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

__all__ = ["Call", "Signature", "SignatureReader", "is_size", "map_arguments"]

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Signature:
    """What two calls must share to run the same graph: names, container structure, dtypes, ranks, devices, literals."""

    entries: tuple[tuple[str, Hashable], ...]

    def real(self) -> Signature:
        """That of the call which a tracer with fake tensors stands for."""
        return Signature(_real(self.entries))

    def describe(self) -> str:
        """Text such as ``input_ids: int64[·,·], output_attentions=True``."""
        return ", ".join(f"{name}{_describe(entry)}" for name, entry in self.entries)


def _describe(entry: Any) -> str:
    if isinstance(entry, tuple) and entry and entry[0] is Tensor:
        dtype, dims = str(entry[1]).removeprefix("torch."), ",".join("·" * entry[2])
        return f": {dtype}[{dims}]"
    if isinstance(entry, tuple) and entry and entry[0] is pytree.TreeSpec:
        return ": container"
    return f"={entry[1]!r}" if isinstance(entry, tuple) else ""


@dataclass(frozen=True)
class Call:
    """One call in normal form: by keyword, unless the model takes ``*args`` and was given some.

    Attributes:
        signature: What it shares with other calls of the same graph.
        leaves: Its tensors, those inside containers included.
        args: Positional arguments (only where ``*args`` were given).
        kwargs: Keyword arguments in the order of the parameters, further ones as they were given.
    """

    signature: Signature
    leaves: list[Tensor]
    args: tuple[Any, ...]
    kwargs: Arguments


class SignatureReader:
    """Reads calls of one ``forward``: positional and keyword arguments to a signature and its tensor leaves.

    Raises:
        TypeError: at ``read`` for an argument that cannot be part of a signature: a tensor subclass, or an object
            that is neither a tensor, nor a plain value, nor a tuple, list or dict of them.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        self.positional: list[str] = []
        self.defaults: Arguments = {}
        self.variadic: str | None = None
        self.named: dict[str, inspect.Parameter] = {}
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                self.variadic = name
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                self.positional.append(name)
            if parameter.default is not parameter.empty:
                self.defaults[name] = parameter.default
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                self.named[name] = parameter

    def bind(self, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
        """Arguments by name, those equal to their default left out."""
        bound: Arguments = {}
        for position, value in enumerate(args):
            known = position < len(self.positional)
            name = self.positional[position] if known else f"{self.variadic}[{position - len(self.positional)}]"
            bound[name] = value
        if kwargs:
            bound.update(kwargs)
        defaults = self.defaults
        return {
            name: value
            for name, value in bound.items()
            if isinstance(value, Tensor) or name not in defaults or not _same(value, defaults[name])
        }

    def read(self, args: tuple[Any, ...], kwargs: Arguments) -> Call:
        """Signature and tensors of a call. The order of the tensors depends on the signature only."""
        bound = self.bind(args, kwargs)
        positional = tuple(args) if any("[" in name for name in bound) else ()
        by_position = {f"{index}": value for index, value in enumerate(positional)}
        # Keywords beyond the named parameters keep their order: forward may loop over them.
        known = [name for name in self.named if name in bound]
        by_name = {name: bound[name] for name in (*known, *(name for name in bound if name not in self.named))}
        if positional:
            taken = {*self.positional[: len(positional)], *(name for name in bound if "[" in name)}
            by_name = {name: value for name, value in by_name.items() if name not in taken}
        entries: list[tuple[str, Hashable]] = []
        leaves: list[Tensor] = []
        for name, value in (by_position | by_name).items():
            if isinstance(value, Tensor):
                entries.append((name, _kind(value)))
                leaves.append(value)
            elif isinstance(value, _LITERALS):
                entries.append((name, _literal(value)))
            else:
                entries.append((name, _container(value, leaves)))
        if len(leaves) > 1 and len({id(leaf) for leaf in leaves}) < len(leaves):
            # A model may ask whether two arguments are one tensor (nn.MultiheadAttention does).
            first = {id(leaf): index for index, leaf in reversed(list(enumerate(leaves)))}
            entries.append(("same tensors", (tuple, tuple(first[id(leaf)] for leaf in leaves))))
        return Call(Signature(tuple(entries)), leaves, positional, by_name)


def _same(value: Any, default: Any) -> bool:
    if value is default:
        return True
    simple = (bool, int, float, str)
    return isinstance(value, simple) and type(value) is type(default) and value == default


def _kind(value: Tensor) -> Hashable:
    if type(value) not in _PLAIN or value.is_nested:
        raise TypeError(f"a {type(value).__name__} is not a plain tensor")
    return (Tensor, value.dtype, value.dim(), value.device, value.layout, type(value))


def _real(entry: Any) -> Any:
    if isinstance(entry, tuple):
        return tuple(map(_real, entry))
    return Tensor if entry is FakeTensor else entry


def is_size(value: object) -> bool:
    """Whether a value is a ``torch.Size``, which pytree would open and put back together as a tuple."""
    return isinstance(value, torch.Size)


def map_arguments(function: Callable[[Any], Any], arguments: Any) -> Any:
    """``arguments`` with every leaf of its containers replaced; ``torch.Size`` is a leaf."""
    return pytree.tree_map(function, arguments, is_leaf=is_size)


def _literal(value: Any) -> Hashable:
    # A slice is hashable from Python 3.12 on only.
    return (slice, (value.start, value.stop, value.step)) if type(value) is slice else (type(value), value)


def _container(value: Any, leaves: list[Tensor]) -> Hashable:
    """Entry for a container argument; its tensors are appended to ``leaves``."""
    parts, spec = pytree.tree_flatten(value)
    _refuse_objects(spec)
    described: list[Hashable] = []
    for part in parts:
        if isinstance(part, Tensor):
            described.append(_kind(part))
            leaves.append(part)
        elif isinstance(part, _LITERALS):
            described.append(_literal(part))
        else:
            raise TypeError(f"a {type(part).__name__} is neither a tensor nor a plain value")
    return (pytree.TreeSpec, str(spec), tuple(described))


def _refuse_objects(spec: pytree.TreeSpec) -> None:
    """Only containers without a life of their own: a key-value cache is changed by the model that it is given to."""
    # The type of a named tuple is in its context.
    kind = spec.type if isinstance(spec.type, type) or spec.type is None else spec.context
    if kind is not None and not (isinstance(kind, type) and issubclass(kind, (tuple, list, dict))):
        raise TypeError(f"a {getattr(kind, '__name__', kind)} is not a plain container")
    for child in spec.children():
        _refuse_objects(child)


_LITERALS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, slice, enum.Enum)
_PLAIN = frozenset({Tensor, torch.nn.Parameter, FakeTensor})
