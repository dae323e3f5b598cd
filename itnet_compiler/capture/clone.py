"""Clones of a module tree: a shallow one, with new module objects and the same tensors, and a deep one."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .belongings import Belongings

__all__ = ["deep_clone", "shallow_clone"]


def deep_clone(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``model``.

    What an earlier call left in an attribute together with its graph (a cache of computed tensors) is copied without
    the graph, which would lead to the parameters of the original.
    """
    computed = [tensor for tensor in Belongings(model).tensors.values() if not tensor.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def shallow_clone(model: nn.Module) -> nn.Module:
    """A copy of the module tree of ``model`` whose modules are new objects that share all tensors.

    Module objects and the plain containers (list, tuple, dict, set) in their attributes are new; references between
    modules of the tree (lists of modules, bound methods, partials) point into the clone. Everything else (parameters,
    buffers, configs, callables) is shared with the original.
    """
    clones: dict[int, Any] = {id(module): object.__new__(module.__class__) for module in model.modules()}
    for module in model.modules():  # before the handles that refer to them
        for hooks in [value for name, value in module.__dict__.items() if name.endswith("_hooks")]:
            _translate(hooks, clones)
    for module in model.modules():
        twin = clones[id(module)]
        for name, value in module.__dict__.items():
            twin.__dict__[name] = _translate(value, clones)
    return clones[id(model)]


def _translate(value: Any, clones: dict[int, Any]) -> Any:
    """``value`` as the clone should hold it; ``clones`` maps the id of an original to its copy."""
    if id(value) in clones:
        return clones[id(value)]
    if isinstance(value, types.MethodType):
        owner = clones.get(id(value.__self__))
        return value if owner is None else types.MethodType(value.__func__, owner)
    if isinstance(value, RemovableHandle):
        return _translate_handle(value, clones)
    if type(value) is functools.partial:
        arguments = (_translate(part, clones) for part in value.args)
        keywords = {key: _translate(part, clones) for key, part in value.keywords.items()}
        return functools.partial(_translate(value.func, clones), *arguments, **keywords)
    if type(value) is tuple:
        parts = tuple(_translate(part, clones) for part in value)
        return parts if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    if type(value) is list:
        # Registered before it is filled: a list may contain itself, and two modules may share one list.
        twin: Any = clones.setdefault(id(value), [])
        twin.extend(_translate(part, clones) for part in value)
        return twin
    if type(value) is set:
        return clones.setdefault(id(value), set(value))
    if isinstance(value, dict) and (type(value) is dict or hasattr(value, "move_to_end")):
        twin = clones.setdefault(id(value), copy.copy(value))
        for key, part in value.items():
            twin[key] = _translate(part, clones)
        return twin
    return value


def _translate_handle(handle: RemovableHandle, clones: dict[int, Any]) -> RemovableHandle:
    """A handle that removes the hook from the clone, where it is one of a module of the tree."""
    hooks, number, extra = handle.__getstate__()
    if id(hooks) not in clones:
        return handle
    twin = RemovableHandle.__new__(RemovableHandle)
    twin.__setstate__((clones[id(hooks)], number, tuple(clones.get(id(each), each) for each in extra)))
    return clones.setdefault(id(handle), twin)
