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
from .runtime.program import Program

if TYPE_CHECKING:
    import networkx

    from .inspect.report import Report

__all__ = ["Unified", "make_unified", "program_of"]

_PROGRAM = "_itnet_program"
_INSTANCE_FORWARD = "_itnet_instance_forward"


class Unified:
    """Mixed into the class of a unified model; everything else about the model stays as it was.

    Where the model's own class has an attribute of one of these names, the model's stays, and the function of the
    same name in ``itnet`` (``itnet.report(unified)`` …) reaches ours.
    """

    @property
    def ir(self) -> str:
        """The rewritten graph as text, one line a node."""
        from .ir.printer import print_graph

        program = program_of(self)
        return print_graph(program.graph, program.model_name)

    @property
    def graph(self) -> Graph:
        """The flat rewritten ``torch.fx.Graph`` of the current mode; integrals are ``call_module`` nodes."""
        return program_of(self).graph

    @property
    def integrals(self) -> Mapping[str, Integral]:
        """Integral nodes of the current mode by name, in graph order."""
        return {integral.name: integral for integral in program_of(self).current.integrals}

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
        program_of(self).plan(None)
        return cast(nn.Module, self)

    def __str__(self) -> str:
        from .inspect.summary import summary

        return summary(program_of(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        state = {key: value for key, value in self.__dict__.items() if key != _PROGRAM}
        twin.__dict__.update(copy.deepcopy(state, memo))
        twin.__dict__[_PROGRAM] = program_of(self).bound_to(cast(nn.Module, twin))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made at run time, so a pickle holds the original one; graphs are captured again when called.
        program = program_of(self)
        state = {key: value for key, value in self.__dict__.items() if key != _PROGRAM}
        options = {"dynamic": program.dynamic, "verify": program.verified}
        return _rebuild, (_original_class(self), options), state, None, None, _set_state

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


def make_unified(clone: nn.Module, *, dynamic: bool, verify: bool) -> nn.Module:
    """Turn a clone of a model into a unified one, in place."""
    own_forward = clone.__dict__.pop("forward", None)
    if own_forward is not None:
        clone.__dict__[_INSTANCE_FORWARD] = own_forward
    original = type(clone).forward if own_forward is None else _instance_forward
    signature = inspect.signature(own_forward or original.__get__(clone))
    clone.__class__ = _unified_class(clone)
    clone.__dict__[_PROGRAM] = Program(clone, original, signature, _restore, dynamic=dynamic, verify=verify)
    return clone


def _instance_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The ``forward`` that had been assigned to the instance."""
    return self.__dict__[_INSTANCE_FORWARD](*args, **kwargs)


def _restore(clone: nn.Module) -> nn.Module:
    """Make a clone of a unified model an instance of the original class again, in place."""
    clone.__class__ = _original_class(clone)
    clone.__dict__.pop(_PROGRAM, None)
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

    if inspect.ismethod(forward):
        # inspect.signature follows __wrapped__ to a method without self; on the class it needs one with self.
        run.__wrapped__ = forward.__func__
    members: dict[str, Any] = {
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_itnet_original_class": original,
        "forward": run,
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


def _rebuild(original: type[nn.Module], options: dict[str, bool]) -> nn.Module:
    """Unpickling, first half: an empty instance that remembers how it was unified."""
    model = original.__new__(original)
    model.__dict__["_itnet_options"] = options
    return model


def _set_state(model: nn.Module, state: dict[str, Any]) -> None:
    """Unpickling, second half: the tree, unified again; graphs are captured when it is called."""
    options = model.__dict__.pop("_itnet_options")
    own_forward = state.pop(_INSTANCE_FORWARD, None)
    model.__dict__.update(state)
    if own_forward is not None:
        model.__dict__["forward"] = own_forward
    make_unified(model, **options)
