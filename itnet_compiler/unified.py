"""The face of a unified model: the user's own classes, mixed with ``Unified``."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from torch.fx import Graph

from .ir.integral import Integral
from .runtime.assembly import graphs, parts, plan
from .runtime.boundary import Policy
from .runtime.program import Program

if TYPE_CHECKING:
    import networkx

    from .inspect.report import Report

__all__ = ["Unified", "as_original", "make_unified", "program_of"]

_PROGRAM = "_itnet_program"
_INSTANCE_FORWARD = "_itnet_instance_forward"


class Unified:
    """Mixed into the class of a unified model; everything else about the model stays as it was.

    Where the model's own class has an attribute of one of these names, the model's stays, and the function of the
    same name in ``itnet`` (``itnet.report(unified)`` …) reaches ours.
    """

    @property
    def ir(self) -> str:
        """The rewritten graph as text, one line a node; of a model in parts that of every part."""
        from .inspect.overview import ir

        return ir(program_of(self))

    @property
    def graph(self) -> Graph:
        """The flat rewritten ``torch.fx.Graph`` of the current mode; integrals are ``call_module`` nodes.

        Raises:
            ItnetError: for a model in parts, which has one for each: ``unified.parts[path].graph``.
        """
        return program_of(self).one_graph

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """Module path → captured submodule, for a model that runs as Python around captured parts; else empty.

        Each part is a unified model itself: ``unified.parts[path].report()``.
        """
        return parts(program_of(self))

    @property
    def integrals(self) -> Mapping[str, Integral]:
        """Integral nodes of the current mode by name, in graph order."""
        found = graphs(program_of(self))
        return {integral.name: integral for program in found for integral in program.current.integrals}

    def report(self) -> Report:
        """Table of all integrals with costs and verification, coverage, and what was left alone and why."""
        from .inspect.report import Report

        return Report(program_of(self))

    def explain(self, path: str) -> str:
        """What happened at a module path or node name (a glob may be given). Raises ``InputError`` if there is none."""
        from .inspect.explain import explain

        return explain(program_of(self), path)

    def to_networkx(self) -> networkx.DiGraph:
        """The rewritten graph as a ``networkx.DiGraph``. Raises ``ItnetError`` where networkx is not installed."""
        from .inspect.to_networkx import to_networkx

        return to_networkx(program_of(self))

    def reset(self) -> nn.Module:
        """Undo every ``lower``: each node runs the exact library kernel again. Returns the model itself."""
        plan(program_of(self), None)
        return cast(nn.Module, self)

    def __str__(self) -> str:
        from .inspect.summary import summary

        return summary(program_of(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = object.__new__(self.__class__)
        memo[id(self)] = twin
        state = {key: value for key, value in self.__dict__.items() if key != _PROGRAM}
        twin.__dict__.update(copy.deepcopy(state, memo))
        twin.__dict__[_PROGRAM] = program_of(self).bound_to(cast(nn.Module, twin))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so a pickle holds the original one; graphs are captured again when called.
        program = program_of(self)
        # Some modules leave out of it what cannot be pickled (nn.LSTM).
        kept: Any = self.__getstate__() if hasattr(_original_class(self), "__getstate__") else self.__dict__
        state = {key: value for key, value in kept.items() if key != _PROGRAM}
        return _rebuild, (_original_class(self), program.policy, program.path), state, None, None, _set_state

    def _replicate_for_data_parallel(self) -> Any:
        # The tensors of a replica are not in its registries, where a graph would look: it runs the original code.
        plain = _original_class(self).__new__(_original_class(self))
        plain.__dict__ = dict(self.__dict__)
        return _restore(plain)._replicate_for_data_parallel()


def program_of(model: Any) -> Program:
    """The program behind a unified model. Raises ``TypeError`` for any other object."""
    program = getattr(model, "__dict__", {}).get(_PROGRAM)
    if program is None:
        raise TypeError(
            f"{type(model).__name__} is not a unified model: make one with itnet.unify(model, example_inputs)"
        )
    return program


def make_unified(clone: nn.Module, policy: Policy, path: str = "") -> Program:
    """Turn a module, at ``path`` of a unified model, into a unified one, in place."""
    own_forward = clone.__dict__.pop("forward", None)
    if own_forward is not None:
        clone.__dict__[_INSTANCE_FORWARD] = own_forward
    original = type(clone).forward if own_forward is None else _instance_forward
    signature = inspect.signature(own_forward or original.__get__(clone))
    object.__setattr__(clone, "__class__", _unified_class(clone))
    program = Program(clone, original, signature, _FACE, policy, path)
    clone.__dict__[_PROGRAM] = program
    return program


def as_original(tree: nn.Module) -> nn.Module:
    """Make every unified module in a cloned tree an instance of its original class again, in place."""
    for module in tree.modules():
        _restore(module)
    return tree


class _Face:
    """How the runtime makes boundaries and unmakes them."""

    def restore(self, tree: nn.Module) -> nn.Module:
        return as_original(tree)

    def install(self, module: nn.Module, policy: Policy, path: str) -> Program:
        return make_unified(module, policy, path)

    def program(self, module: nn.Module) -> Program | None:
        return module.__dict__.get(_PROGRAM)


_FACE = _Face()


def _instance_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The ``forward`` that had been assigned to the instance."""
    return self.__dict__[_INSTANCE_FORWARD](*args, **kwargs)


def _restore(clone: nn.Module) -> nn.Module:
    """Make a module of a clone of a unified model an instance of the original class again, in place."""
    if _PROGRAM not in clone.__dict__:
        return clone
    object.__setattr__(clone, "__class__", _original_class(clone))
    clone.__dict__.pop(_PROGRAM, None)
    # One that was assigned since then runs around the graph, as a hook of the root does.
    clone.__dict__.pop("forward", None)
    own_forward = clone.__dict__.pop(_INSTANCE_FORWARD, None)
    if own_forward is not None:
        clone.__dict__["forward"] = own_forward
    return clone


def _original_class(model: Any) -> type[nn.Module]:
    return getattr(type(model), "_itnet_original_class", type(model))


def _unified_class(model: nn.Module) -> type[nn.Module]:
    """A class like that of ``model``, mixed with ``Unified``; whatever names the model uses itself stay its own."""
    original = type(model)
    forward = model.__dict__.get(_INSTANCE_FORWARD, original.forward)

    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[_PROGRAM](*args, **kwargs)

    def make(cls: type, *args: Any, **kwargs: Any) -> nn.Module:
        """``type(unified)(…)``, as slices of an ``nn.Sequential`` do it, makes an instance of the original class."""
        return original(*args, **kwargs)

    if inspect.ismethod(forward):
        # inspect.signature follows __wrapped__ to a method without self; on the class it needs one with self.
        run.__wrapped__ = forward.__func__
    members: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_itnet_original_class": original,
        "forward": run,
        "__new__": make,
    }
    for name in vars(Unified):
        if name in _MACHINERY:
            continue
        theirs = inspect.getattr_static(original, name, None)
        inherited = inspect.getattr_static(nn.Module, name, None)
        if theirs is not None and theirs is not inherited:
            members[name] = theirs
        elif (
            any(name in model.__dict__.get(store, ()) for store in ("_modules", "_parameters", "_buffers"))
            or name in model.__dict__
        ):
            members[name] = _UserAttribute(name)
    return types.new_class(original.__name__, (Unified, original), exec_body=lambda body: body.update(members))


# Members of ``Unified`` that are not names which a model could want for itself.
_MACHINERY = frozenset(
    {
        "__deepcopy__",
        "__reduce_ex__",
        "_replicate_for_data_parallel",
        "__module__",
        "__doc__",
        "__dict__",
        "__weakref__",
    }
)


class _UserAttribute:
    """Lets an attribute of the model's instance show through where ``Unified`` has one of the same name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, model: nn.Module | None, owner: type) -> Any:
        if model is None:
            return self
        return nn.Module.__getattr__(model, self._name)


def _rebuild(original: type[nn.Module], policy: Policy, path: str) -> nn.Module:
    """Unpickling, first half: an empty instance that remembers how it was unified."""
    model = original.__new__(original)
    model.__dict__["_itnet_options"] = policy, path
    return model


def _set_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Unpickling, second half: the tree, unified again; graphs are captured when it is called."""
    policy, path = model.__dict__.pop("_itnet_options")
    own_forward = state.pop(_INSTANCE_FORWARD, None)
    model.__setstate__(state)
    if own_forward is not None:
        model.__dict__["forward"] = own_forward
    make_unified(model, policy, path)
