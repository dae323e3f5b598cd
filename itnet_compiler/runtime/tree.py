"""The state of a module tree that a captured graph depends on, read cheaply before every call."""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

from ..capture.hooks import HOOKS, fires

__all__ = ["TreeState"]

_PLAIN = frozenset({bool, int, float, str, type(None), type, FunctionType, BuiltinFunctionType})
# Names of classes whose objects hold the settings of a model.
_NO_SETTINGS = frozenset({"training", "_is_full_backward_hook"})
_CONFIG = ("Config", "Configuration", "Args", "Arguments", "Options", "Settings", "Namespace")
_kind = attrgetter("dtype", "device", "__class__")
_GLOBAL_HOOKS = [vars(torch_module)[f"_global{kind}"] for kind in HOOKS]


class TreeState:
    """Mode, settings, dtypes, devices and identity of the parts of a module tree.

    The dictionaries of the modules are looked into directly: going through ``nn.Module.__getattr__`` would cost more
    than a small layer. A part that was replaced since the last reading makes the tree be walked again.
    """

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self.edition = 0
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
        # Tensors in plain attributes too: a graph looks them up as it does parameters.
        self._present += [(d, name) for d in self._dicts for name, value in d.items() if isinstance(value, Tensor)]
        self._absent = [(store, name) for store in stores for name, value in store.items() if value is None]
        self._find_settings()
        self._hooks = [module.__dict__[kind] for module in modules[1:] for kind in HOOKS]

    def _find_settings(self) -> None:
        """Attributes that are plain values (a dropout rate, a scale): a graph holds what they were at capture.

        Those of configuration objects that the modules hold are among them.
        """
        held = {id(value): value for state in self._dicts for value in state.values() if _is_config(value)}
        registries = ("_modules", "_parameters", "_buffers")
        self._sized = [*self._dicts, *(state[registry] for state in self._dicts for registry in registries)]
        self._sizes = [*map(len, self._sized)]
        self._settings = [
            (state, name)
            for state in [*self._dicts, *(value.__dict__ for value in held.values())]
            for name, value in state.items()
            if type(value) in _PLAIN and name not in _NO_SETTINGS
        ]
        self._kinds_of_settings = [type(state[name]) for state, name in self._settings]

    def read(self) -> tuple[Any, ...]:
        """What a graph's validity depends on: equal results mean that the same graph applies."""
        for _ in range(2):
            try:
                # Lists, since the generators that ruff would have are slower here.
                same = all([store[name] is child for store, name, child in self._children])  # noqa: C419
                if same and not any([store[name] is not None for store, name in self._absent]):  # noqa: C419
                    kinds = [_kind(store[name]) for store, name in self._present]
                    settings = [store[name] for store, name in self._settings]
                    same = [*map(type, settings)] == self._kinds_of_settings and [*map(len, self._sized)] == self._sizes
                    modes = [state["training"] for state in self._dicts]
                    if same:
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
        for (tensors, name), (dtype, device, kind) in zip(self._present, kinds, strict=True):
            tensor = tensors[name]
            if tensor.dtype != dtype or tensor.device != device:
                return False
            if type(tensor) is not kind and not _stands_for(tensor, kind):
                return False
        for (attributes, name), value in zip(self._settings, settings, strict=True):
            if attributes[name] != value:
                return False
        return True

    def hooked(self) -> str:
        """Which hooks there are that a graph would not run; empty where there are none."""
        if any(self._hooks) and fires(self._hooks):
            return "modules below have hooks"
        return "global module hooks are set" if any(_GLOBAL_HOOKS) else ""

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


def _stands_for(tensor: Tensor, kind: type) -> bool:
    """Whether a tracer shows a tensor of this class so: as a fake one, or as the nn.Buffer that it was made by."""
    plain = kind is Tensor or kind is nn.Parameter
    return plain and (type(tensor) is FakeTensor or (kind is Tensor and type(tensor) is nn.Buffer))


def _is_config(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, (Tensor, nn.Module, type)) or not hasattr(value, "__dict__"):
        return False
    return kind.__name__.endswith(_CONFIG) or dataclasses.is_dataclass(kind)
