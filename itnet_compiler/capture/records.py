"""Objects that ``forward`` makes and returns, opened into the tensors that they hold: dataclasses, key-value caches.

A graph returns tensors. An object with attributes that are tensors, plain values or containers of them is put together
again from them, as ``copy.copy`` would: same class, same attributes, ``__init__`` not called. Nothing is registered for
the classes of others; what torch sees is a ``Record``.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Record", "contents", "opened"]

_LITERALS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    enum.Enum,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
_LEAVES = (Tensor, SymInt, SymFloat, SymBool)
_NEVER = (nn.Module, types.FunctionType, types.MethodType, types.ModuleType, types.BuiltinFunctionType, torch.Generator)
# Python's own ways to say how an object is copied; a class with others is left alone.
_COPYING = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__getnewargs__")


class _Closed(Exception):
    """An object that cannot be opened."""


class Record:
    """What is left of an object without its tensors, and the tensors."""

    __slots__ = ("leaves", "template")

    def __init__(self, leaves: list[Any], template: Hashable) -> None:
        self.leaves, self.template = leaves, template


def _unflatten(leaves: Iterable[Any], template: Any) -> Any:
    return _rebuilt(template, iter(leaves), [])


pytree.register_pytree_node(
    Record,
    lambda record: (record.leaves, record.template),
    _unflatten,
    serialized_type_name="itnet_compiler.Record",
)


def opened(value: Any, kept: Iterable[object] = ()) -> Any:
    """``value`` with every object in it that holds tensors as a ``Record``; the others stay as they are.

    Args:
        value: What forward returned.
        kept: Objects that are not forward's own, and so must not be replaced by copies.
    """
    foreign = {id(one) for one in kept}
    seen: dict[int, Record] = {}

    def one(leaf: Any) -> Any:
        if isinstance(leaf, (*_LEAVES, *_LITERALS)) or id(leaf) in foreign:
            return leaf
        if id(leaf) not in seen:
            leaves: list[Any] = []
            try:
                record = Record(leaves, _template(leaf, leaves, {}, foreign))
            except _Closed:
                return leaf
            if not any(isinstance(found, Tensor) for found in leaves):
                return leaf
            seen[id(leaf)] = record
        return seen[id(leaf)]

    return pytree.tree_map(one, value)


def contents(value: Any) -> list[Any]:
    """All leaves of what forward returned, and of every object taken apart what it is besides its leaves."""
    found: list[Any] = []
    for leaf in pytree.tree_leaves(opened(value), is_leaf=lambda one: isinstance(one, Record)):
        found += [leaf.template, *leaf.leaves] if isinstance(leaf, Record) else [leaf]
    return found


def _template(value: Any, leaves: list[Any], seen: dict[int, int], foreign: set[int]) -> Hashable:
    """The structure of a value; its tensors are appended to ``leaves``."""
    if isinstance(value, _LEAVES):
        leaves.append(value)
        return ("leaf",)
    if isinstance(value, _LITERALS):
        return ("literal", type(value), value)
    if id(value) in foreign:
        raise _Closed
    if id(value) in seen:
        return ("again", seen[id(value)])
    seen[id(value)] = len(seen)
    if type(value) in (list, tuple, torch.Size):  # sizes may be symbolic while forward is traced
        return (type(value), tuple(_template(item, leaves, seen, foreign) for item in value))
    if type(value) is dict:
        if not all(isinstance(key, (str, int)) for key in value):
            raise _Closed
        return (dict, tuple((key, _template(item, leaves, seen, foreign)) for key, item in value.items()))
    attributes = _attributes(value)
    items = tuple((name, _template(item, leaves, seen, foreign)) for name, item in attributes.items())
    return ("object", type(value), items)


def _attributes(value: Any) -> dict[str, Any]:
    kind = type(value)
    made: Any = kind.__new__
    plain = all(getattr(kind, name, None) is getattr(object, name, None) for name in _COPYING)
    if isinstance(value, _NEVER) or made is not object.__new__ or not (plain or dataclasses.is_dataclass(kind)):
        raise _Closed
    slots = [name for base in kind.__mro__ for name in base.__dict__.get("__slots__", ())]
    names = [*(name for name in slots if name not in ("__dict__", "__weakref__")), *getattr(value, "__dict__", ())]
    if not names:
        raise _Closed
    return {name: getattr(value, name) for name in dict.fromkeys(names) if hasattr(value, name)}


def _rebuilt(template: Any, leaves: Any, made: list[Any]) -> Any:
    kind = template[0]
    if kind == "leaf":
        return next(leaves)
    if kind == "literal":
        return template[2]
    if kind == "again":
        return made[template[1]]
    place = len(made)
    made.append(None)
    if kind in (tuple, torch.Size):
        made[place] = kind(_rebuilt(item, leaves, made) for item in template[1])
    elif kind is list:
        made[place] = []
        made[place].extend(_rebuilt(item, leaves, made) for item in template[1])
    elif kind is dict:
        made[place] = {}
        for key, item in template[1]:
            made[place][key] = _rebuilt(item, leaves, made)
    else:
        made[place] = object.__new__(template[1])
        for name, item in template[2]:
            object.__setattr__(made[place], name, _rebuilt(item, leaves, made))
    return made[place]
