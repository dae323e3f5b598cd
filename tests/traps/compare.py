"""Two object graphs, compared: values, types, layout, and which tensors and containers are the same object."""

from __future__ import annotations

import functools
import random
import types
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

__all__ = ["random_states", "same", "seed"]

_HOOKS = {name for name in nn.Module().__dict__ if "hook" in name}
_ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, slice, range, type)


def seed(number: int) -> None:
    """Seed all three generators."""
    torch.manual_seed(number), random.seed(number), np.random.seed(number)


def random_states() -> tuple[Any, ...]:
    """Where the three generators are."""
    _, keys, position, *_ = np.random.get_state(legacy=True)
    return torch.get_rng_state(), random.getstate(), bytes(keys), position


def same(expected: Any, found: Any, what: str = "") -> None:
    """Raise ``AssertionError``, with the path of the first difference, unless two object graphs are alike."""
    _Comparison().walk(expected, found, what)


class _Comparison:
    def __init__(self) -> None:
        self.twins: dict[Any, Any] = {}
        self.kept: list[Any] = []

    def walk(self, a: Any, b: Any, path: str) -> None:
        if isinstance(a, _ATOMS):
            if isinstance(a, type):
                a, b = _original(a).__qualname__, _original(b).__qualname__
            assert type(a) is type(b) and (a == b or a != a), f"{path}: {b!r}, expected {a!r}"
            return
        kind, other = _original(type(a)), _original(type(b))
        alike = (kind.__module__, kind.__qualname__) == (other.__module__, other.__qualname__)
        assert alike, f"{path}: a {other.__qualname__}, expected {kind.__qualname__}"
        if not isinstance(a, (tuple, types.FunctionType, types.BuiltinFunctionType)) and not self._new(a, b, path):
            return
        if isinstance(a, Tensor):
            self._tensors(a, b, path)
        elif isinstance(a, dict):
            self._mappings(a, b, path)
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b), f"{path}: {len(b)} items, expected {len(a)}"
            for index, pair in enumerate(zip(a, b, strict=True)):
                self.walk(*pair, f"{path}[{index}]")
        elif isinstance(a, (set, frozenset)):
            assert a == b, f"{path}: {b}, expected {a}"
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(b, a, path)
        elif isinstance(a, types.MethodType):
            self.walk(a.__func__, b.__func__, path)
            self.walk(a.__self__, b.__self__, f"{path}.__self__")
        elif isinstance(a, functools.partial):
            self.walk((a.func, a.args, a.keywords), (b.func, b.args, b.keywords), path)
        elif isinstance(a, (types.FunctionType, types.BuiltinFunctionType)):
            assert a.__qualname__ == b.__qualname__, f"{path}: {b}, expected {a}"
        elif not isinstance(a, (weakref.ref, RemovableHandle, types.ModuleType)):
            self._mappings(_attributes(a), _attributes(b), path)

    def _new(self, a: Any, b: Any, path: str) -> bool:
        """Whether a pair is met for the first time; asserts that what is one object here is one object there."""
        self.kept += [a, b]
        if ("a", id(a)) in self.twins or ("b", id(b)) in self.twins:
            one = self.twins.get(("a", id(a))) == id(b) and self.twins.get(("b", id(b))) == id(a)
            assert one, f"{path}: not the object that it should be"
            return False
        self.twins["a", id(a)], self.twins["b", id(b)] = id(b), id(a)
        return True

    def _tensors(self, a: Tensor, b: Tensor, path: str) -> None:
        lazy = is_lazy(a)
        for name in ("dtype", "device", "layout", "requires_grad", "is_leaf", *([] if lazy else ["shape"])):
            assert getattr(a, name) == getattr(b, name), f"{path}.{name}: {getattr(b, name)}, not {getattr(a, name)}"
        assert lazy == is_lazy(b), f"{path}: one is uninitialised"
        if lazy:
            return
        assert (a.is_conj(), a.is_neg()) == (b.is_conj(), b.is_neg()), f"{path}: another view of complex numbers"
        torch.testing.assert_close(b.detach(), a.detach(), rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{path}: {m}")
        if a.layout is torch.strided and a.numel() > 1:
            strides = [[step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1] for t in (a, b)]
            assert strides[0] == strides[1], f"{path}: strides {b.stride()}, expected {a.stride()}"
            places = [(t.untyped_storage().data_ptr(), t.storage_offset()) for t in (a, b)]
            known = self.twins.setdefault(("storage a", places[0][0]), places[1][0])
            back = self.twins.setdefault(("storage b", places[1][0]), places[0][0])
            assert (known, back) == (places[1][0], places[0][0]), f"{path}: shares its memory with something else"
        if a.is_leaf:
            self.walk(a.grad, b.grad, f"{path}.grad")

    def _mappings(self, a: dict[Any, Any], b: dict[Any, Any], path: str) -> None:
        first, second = ([key for key in d if not str(key).startswith("_itnet") and key != "forward"] for d in (a, b))
        assert set(first) == set(second), f"{path}: keys {second}, expected {first}"
        for key in first:
            if key in _HOOKS:  # by count: their keys are numbers that differ
                assert not isinstance(a[key], dict) or len(a[key]) == len(b[key]), f"{path}: other {key}"
            else:
                self.walk(a[key], b[key], f"{path}.{key}")


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ()) if hasattr(value, name)]
    return dict(getattr(value, "__dict__", {})) | {name: getattr(value, name) for name in slots}


def _original(cls: type) -> type:
    return getattr(cls, "_itnet_original_class", cls)
