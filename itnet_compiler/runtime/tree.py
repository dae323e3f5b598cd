"""The state of a module tree that a captured graph depends on, read cheaply before every call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

__all__ = ["TreeState"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = frozenset({bool, int, float, str, type(None)})
_kind = attrgetter("dtype", "device")


class TreeState:
    """Mode, plain attributes, dtypes, devices and identity of the parts of a module tree.

    The dictionaries of the modules are looked into directly: going through ``nn.Module.__getattr__`` would cost more
    than a small layer. A part that was replaced since the last reading makes the tree be walked again.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self.edition = 0
        self._volatile: set[tuple[int, str]] = set()
        self._walk()

    def _walk(self) -> None:
        modules = list(self._root.modules())
        self._dicts = [module.__dict__ for module in modules]
        self._children = [
            (module._modules, name, child) for module in modules for name, child in module._modules.items()
        ]
        stores = [store for module in modules for store in (module._parameters, module._buffers)]
        self._present: list[tuple[dict[str, Any], str]] = [
            (store, name) for store in stores for name, value in store.items() if value is not None
        ]
        self._absent = [(store, name) for store in stores for name, value in store.items() if value is None]
        self._find_settings()
        self._hooks = [module.__dict__[kind] for module in modules[1:] for kind in _HOOKS]

    def _find_settings(self) -> None:
        """Attributes that are plain values (a dropout rate, a scale): a graph holds what they were at capture."""
        self._settings = [
            (state, name)
            for state in self._dicts
            for name, value in state.items()
            if type(value) in _PLAIN and name != "training" and (id(state), name) not in self._volatile
        ]

    def ignore_as(self, other: TreeState) -> None:
        """Ignore the attributes that ``other``, the state of an equal tree, has found to be written by the model."""
        for mine, theirs in zip(self._dicts, other._dicts, strict=True):
            self._volatile |= {(id(mine), name) for name in theirs if (id(theirs), name) in other._volatile}
        self._find_settings()

    @contextlib.contextmanager
    def unchanged_settings(self) -> Iterator[None]:
        """Put plain attributes back that the block changes and ignore them from now on: the model writes them."""
        before = [(state, name, state[name]) for state, name in self._settings]
        try:
            yield
        finally:
            changed = [(state, name, value) for state, name, value in before if state.get(name, self) is not value]
            for state, name, value in changed:
                self._volatile.add((id(state), name))
                state[name] = value
            if changed:
                self._find_settings()

    def read(self) -> tuple[Any, ...]:
        """What a graph's validity depends on: equal results mean that the same graph applies."""
        for _ in range(2):
            try:
                # Lists, since the generators that ruff would have are slower here.
                same = all([store[name] is child for store, name, child in self._children])  # noqa: C419
                if same and not any([store[name] is not None for store, name in self._absent]):  # noqa: C419
                    kinds = [_kind(store[name]) for store, name in self._present]
                    settings = [store[name] for store, name in self._settings]
                    modes = [state["training"] for state in self._dicts]
                    return (self.edition, tuple(modes), tuple(kinds), tuple(settings))
            except (KeyError, AttributeError):
                pass
            self.edition += 1
            self._walk()
        raise RuntimeError("the module tree changed while it was read")

    def matches(self, state: tuple[Any, ...]) -> bool:
        """Whether ``read`` would give ``state``; written so that torch.compile can trace it and guard on each part."""
        edition, modes, kinds, settings = state
        if edition != self.edition or len(modes) != len(self._dicts) or len(kinds) != len(self._present):
            return False
        if len(settings) != len(self._settings):
            return False
        for store, name, child in self._children:
            if store[name] is not child:
                return False
        for module, mode in zip(self._dicts, modes, strict=True):
            if module["training"] != mode:
                return False
        for (tensors, name), (dtype, device) in zip(self._present, kinds, strict=True):
            if tensors[name].dtype != dtype or tensors[name].device != device:
                return False
        for (attributes, name), value in zip(self._settings, settings, strict=True):
            if attributes[name] != value:
                return False
        return True

    def hooked(self) -> bool:
        """Whether a module below the root has forward or backward hooks."""
        return any(self._hooks)

    def locate(self, path: str) -> tuple[dict[str, Any], str] | None:
        """Dictionary and key that hold the tensor at ``path``, or None where the tree has no such tensor."""
        owner, _, name = path.rpartition(".")
        try:
            module = self._root.get_submodule(owner)
        except AttributeError:
            return None
        for store in (module._parameters, module._buffers, module.__dict__):
            if isinstance(store.get(name), Tensor):
                return store, name
        return None
