"""What modules keep on themselves in Python: attributes, lists, caches. A graph would neither read nor write them."""

from __future__ import annotations

import contextlib
import random
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .hooks import HOOKS, is_idle

__all__ = ["Belongings", "contents_kept", "is_identical"]

# Elements of a parameter up to which it is put back should a forward write it (as data-dependent initialisation does).
_SMALL = 65_536

# Plain objects are followed this far from the module that holds them.
_DEPTH = 4
_MOST_OBJECTS = 20_000

# What torch itself keeps on a module and changes as it likes. Registered parts are compared one by one.
# And where transformers notes that it has left idle hooks.
_NOTES = {"_flat_weights", "_flat_weight_refs", "_itnet_program", "_output_capturing_hooks_installed"}
_TORCH = frozenset(vars(nn.Module())) | _NOTES
_REGISTRIES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = frozenset({list, dict, set, deque, OrderedDict, defaultdict})
_OPAQUE = (Tensor, nn.Module, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, str, bytes, int)


class Belongings:
    """A snapshot of everything mutable that the modules of a tree keep outside tensors' storage.

    Contents of tensors are not part of it: writing those is an operator, which a graph has too.

    Args:
        model: The tree.
        others: Further containers by name.

    Attributes:
        hidden: Modules that were found in attributes though not registered.
        tensors: Name → tensor, of those found in attributes, and of the hidden modules.
    """

    def __init__(self, model: nn.Module, others: dict[str, Any] | None = None) -> None:
        self._held: dict[int, tuple[str, Any, Any]] = {}
        self._generators: dict[int, tuple[str, Any, Any]] = {}
        self._modules = {id(module) for module in model.modules()}
        self._arguments: set[int] = set()
        self._registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self.hidden: list[nn.Module] = []
        self.tensors: dict[str, Tensor] = {}
        for name, value in (others or {}).items():
            self._follow(name, value, _DEPTH)
        self._arguments, self.tensors = set(self._held), {}
        for path, module in model.named_modules():
            for registry in (*_REGISTRIES, *HOOKS):
                self._hold(path, module.__dict__[registry])
            state = module.__dict__
            self._held[id(state)] = (path, state, {name: value for name, value in state.items() if name not in _TORCH})
            for name, value in self._held[id(state)][2].items():
                self._follow(f"{path}.{name}".lstrip("."), value, _DEPTH)

    def _hold(self, path: str, container: Any) -> bool:
        if id(container) in self._held or len(self._held) >= _MOST_OBJECTS:
            return False
        self._held[id(container)] = (path, container, container.copy())
        return True

    def _follow(self, path: str, value: Any, depth: int) -> None:
        if isinstance(value, nn.Module) and id(value) not in self._modules:
            self._modules.add(id(value))
            self.hidden.append(value)
            for name, tensor in (*value.named_parameters(path), *value.named_buffers(path)):
                self.tensors[name] = tensor
        if isinstance(value, Tensor) and id(value) not in self._registered:
            self.tensors[path] = value
        if (read := _state_of(value)) is not None:
            self._generators[id(value)] = (path, value, read)
            return
        if depth == 0 or isinstance(value, _OPAQUE) or type(value).__module__.startswith("torch."):
            return
        if isinstance(value, tuple):
            for index, part in enumerate(value):
                self._follow(f"{path}[{index}]", part, depth - 1)
        elif isinstance(value, (list, dict, set, deque)):
            # A container class of the user's own may copy as it likes; it is left alone.
            if type(value) in _CONTAINERS and self._hold(path, value):
                for key, part in _parts(value):
                    self._follow(f"{path}[{key!r}]", part, depth - 1)
        elif isinstance(state := getattr(value, "__dict__", None), dict) and self._hold(path, state):
            for name, part in list(state.items()):
                self._follow(f"{path}.{name}", part, depth - 1)

    def changed(self) -> list[str]:
        """Names of what is not as it was, such as ``layer1.cache``."""
        drawn = [name for name, value, before in self._generators.values() if _state_of(value) != before]
        return [*dict.fromkeys(name for held in self._held.values() for name in _differences(*held)), *drawn]

    def replaced(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], list[str]]]:
        """(path, dictionary, what it held, the keys that differ) of every dictionary that is not as it was."""
        for path, container, before in self._held.values():
            if isinstance(container, dict) and (keys := list(_changed_keys(container, before))):
                yield path, container, before, keys

    def is_shared(self, tensor: Tensor) -> bool:
        """Whether several names stood for ``tensor``."""
        held = [before.values() for _, _, before in self._held.values() if isinstance(before, dict)]
        return sum(value is tensor for values in held for value in values) > 1

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is, or has in it, one of the containers among ``others``."""
        if id(value) in self._arguments:
            return True
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return any(self.holds(part) for part in parts)

    def restore(self) -> None:
        """Put everything back."""
        for _, value, before in self._generators.values():
            _set_state(value, before)
        for path, container, before in self._held.values():
            if not any(True for _ in _differences(path, container, before)):
                continue
            if isinstance(container, dict):
                for name in [name for name in container if name not in before and name not in _TORCH]:
                    del container[name]
                container.update(before)
            else:
                container.clear()
                (container.update if isinstance(container, set) else container.extend)(before)


def is_identical(tensor: Tensor, before: Tensor) -> bool:
    """Whether ``tensor`` still has the elements of ``before``; what has no storage has not changed."""
    if tensor.is_meta or torch.equal(tensor, before):
        return True
    return tensor.dtype.is_floating_point and torch.allclose(tensor, before, rtol=0, atol=0, equal_nan=True)


@contextlib.contextmanager
def contents_kept(tensors: Iterable[Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Put the elements of ``tensors`` back at the end of the block; yields each with a copy of them.

    By value: batch norm writes its statistics without bumping the version counter of the buffer.
    """
    kept = [(tensor, tensor.detach().clone()) for tensor in tensors if _can_be_kept(tensor)]
    try:
        yield kept
    finally:
        with torch.no_grad():
            for tensor, before in kept:
                if not is_identical(tensor, before):
                    tensor.copy_(before)


def _can_be_kept(tensor: Tensor) -> bool:
    if is_lazy(tensor) or tensor.is_nested or tensor.layout is not torch.strided:
        return False
    return not isinstance(tensor, nn.Parameter) or tensor.numel() <= _SMALL


def _state_of(value: Any) -> Any:
    """State of a random generator as something that can be compared; None for anything else."""
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if type(value).__module__.startswith("numpy.random"):
        return None if _bits(value) is None else _Numpy(_bits(value).state)
    return None


def _bits(value: Any) -> Any:
    """What draws the bits of a generator of NumPy's."""
    return getattr(value, "bit_generator", getattr(value, "_bit_generator", None))


class _Numpy:
    """A state of NumPy's, which holds arrays, with an equality of one value."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numpy) and repr(self.state) == repr(other.state)

    __hash__ = None  # type: ignore[assignment]


def _set_state(value: Any, state: Any) -> None:
    if isinstance(value, random.Random):
        value.setstate(state)
    elif isinstance(value, torch.Generator):
        value.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    else:
        _bits(value).state = state.state


def _parts(container: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(container, dict):
        yield from list(container.items())
    elif not isinstance(container, set):
        yield from enumerate(container)


def _differences(path: str, container: Any, before: Any) -> Iterator[str]:
    if isinstance(container, dict):
        yield from (f"{path}.{name}".lstrip(".") for name in _changed_keys(container, before))
    elif len(container) != len(before) or (
        container != before
        if isinstance(container, set)
        else not all(_same(a, b) for a, b in zip(container, before, strict=True))
    ):
        yield path


def _changed_keys(container: Any, before: Any) -> Iterator[Any]:
    for name in [*before, *(name for name in container if name not in before and name not in _TORCH)]:
        missing = object()
        now, then = container.get(name, missing), before.get(name, missing)
        if not _same(now, then) and not is_idle(now):
            yield name


def _same(value: Any, before: Any) -> bool:
    if value is before:
        return True
    return type(value) is type(before) and isinstance(value, (bool, int, float, str)) and value == before
