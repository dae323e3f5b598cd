"""Custom functions in a capture: ``torch.autograd.Function``, recorded as one node each.

A tracer looks into ``forward`` and would differentiate what it finds there, in place of ``backward``. So while
``functions_kept()`` is active, ``forward`` is run once on fake tensors, for its results' shapes and for what passes
may know of it, and one operator is recorded; ``Kept.restore`` then makes it a call of the function itself.

That serves functions whose results depend on nothing but their arguments and on what Python holds at the time of the
call; others are refused with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import SymInt, Tensor
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CaptureError
from ..passes.custom import CustomCall
from ..passes.operators import LIKE, POINTWISE, SUPPORT, schema_name

__all__ = ["Kept", "functions_kept"]

_LITERALS = (bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
_CONTAINERS = (tuple, list, dict)
# Of one result, and of several.
_ONE, _SEVERAL = "custom_function", "custom_functions"

_library = torch.library.Library("itnet_leaf", "FRAGMENT")
for _name, _results in ((_ONE, "Tensor"), (_SEVERAL, "Tensor[]")):
    _library.define(f"{_name}(Tensor[] tensors, SymInt[] sizes, str call) -> {_results}")


@dataclass
class _Recorded:
    """One call: what it will be, its results on fake tensors, and its arguments with places for tensors and sizes."""

    call: CustomCall
    results: list[Tensor]
    structure: pytree.TreeSpec
    leaves: list[Any]


@dataclass(frozen=True)
class _Place:
    """Of a tensor or a size among those of the operator."""

    argument: int
    index: int


# By serial number, of captures that are under way.
_recorded: dict[str, _Recorded] = {}
_serial = count()


def _shapes(tensors: list[Tensor], sizes: list[int], call: str) -> list[Tensor]:
    return [
        torch.empty_strided(one.shape, one.stride(), dtype=one.dtype, device=one.device)
        for one in _recorded[call].results
    ]


torch.library.register_fake(f"itnet_leaf::{_SEVERAL}", _shapes, lib=_library)
torch.library.register_fake(f"itnet_leaf::{_ONE}", lambda *given: _shapes(*given)[0], lib=_library)


class Kept:
    """The custom functions that one capture has met."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        # Classes whose next call is diverted, with the ``forward`` that they define, if they do.
        self.diverted: dict[Any, Any] = {}
        # A class made while forward runs may close over what exists only then.
        self.before = _subclasses(torch.autograd.Function)

    def record(self, function: Any, arguments: tuple[Any, ...], run: Callable[..., Any]) -> Any:
        """Record a call of ``function``, whose forward without its context is ``run``; its results.

        Raises:
            CaptureError: where the call cannot be kept.
        """
        if function not in self.before:
            raise _refusal(function, "is defined anew in every call")
        leaves, structure = pytree.tree_flatten(arguments)
        given: tuple[list[Any], list[Any]] = ([], [])
        template: list[Any] = []
        for leaf in leaves:
            argument = 0 if isinstance(leaf, Tensor) else 1 if isinstance(leaf, SymInt) else None
            if argument is None and not isinstance(leaf, _LITERALS):
                raise _refusal(function, f"takes an argument of type {type(leaf).__name__}")
            if argument is not None:
                given[argument].append(leaf)
                leaf = _Place(argument, len(given[argument]) - 1)
            template.append(leaf)
        watch = _Watch(function, given[0])
        with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction(), watch:
            result = run(*arguments)
        results = list(result) if isinstance(result, tuple) else [result]
        if not results or not all(isinstance(one, Tensor) for one in results):
            raise _refusal(function, "returns something else than tensors")
        call = CustomCall(function, watch.is_elementwise(results), watch.random, watch.has_views(results))
        key = str(next(_serial))
        self.keys.append(key)
        _recorded[key] = _Recorded(call, results, structure, template)
        operator = getattr(torch.ops.itnet_leaf, _SEVERAL if isinstance(result, tuple) else _ONE).default
        made = operator(*given, key)
        return tuple(made) if isinstance(result, tuple) else made

    def restore(self, module: GraphModule) -> None:
        """Make every node that stands for a custom function a call of it, in ``module`` and graphs nested in it."""
        operators = {getattr(torch.ops.itnet_leaf, name).default for name in (_ONE, _SEVERAL)}
        for nested in module.modules():
            if isinstance(nested, GraphModule):
                for node in nested.graph.nodes:
                    if node.target in operators:
                        _put_back(node)
                nested.recompile()


def _put_back(node: Node) -> None:
    recorded = _recorded[str(node.args[2])]
    given: Any = node.args
    leaves = [given[one.argument][one.index] if isinstance(one, _Place) else one for one in recorded.leaves]
    node.target, node.args = recorded.call, pytree.tree_unflatten(leaves, recorded.structure)


def _subclasses(kind: type) -> set[type]:
    found: set[type] = {kind}
    waiting: list[type] = [kind]
    while waiting:
        below: list[type] = waiting.pop().__subclasses__()
        found.update(below)
        waiting += below
    return found


def _refusal(function: Any, why: str) -> CaptureError:
    return CaptureError(
        f"forward applies {function.__qualname__}, whose own backward a captured graph would replace: it {why}",
        remedy="to have it captured make it a torch.library.custom_op with register_autograd",
    )


class _Watch(TorchDispatchMode):
    """Sees what a forward does with its arguments; refuses what a later call could not repeat in their place."""

    def __init__(self, function: Any, given: list[Tensor]) -> None:
        super().__init__()
        self.random = False
        self._function, self._given = function, given
        self._known = {id(one): one for one in given}
        self._storages = {_storage(one) for one in given}
        self._names: set[str] = set()

    def __torch_dispatch__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = schema_name(function)
        for one in pytree.tree_leaves((args, kwargs)):
            if isinstance(one, Tensor) and id(one) not in self._known and not name.startswith("lift"):
                raise _refusal(self._function, "uses a tensor that is none of its arguments")
        for position, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                if any(_storage(one) in self._storages for one in pytree.tree_leaves(written)):
                    raise _refusal(self._function, "writes to its arguments")
        self.random |= torch.Tag.nondeterministic_seeded in function.tags
        result = function(*args, **kwargs)
        made = [one for one in pytree.tree_leaves(result) if isinstance(one, Tensor)]
        still = name in _IN_ORDER and _sizes(args[0]) == _sizes(made[0])
        self._names.add("alias" if still else name)
        self._known |= {id(one): one for one in made}
        return result

    def is_elementwise(self, results: list[Tensor]) -> bool:
        """Whether only elementwise operators were called, and results have the shape of the largest argument."""
        largest = max((_sizes(one) for one in self._given), key=len, default=[])
        return self._names <= _ELEMENTWISE and all(_sizes(one) == largest for one in results)

    def has_views(self, results: list[Tensor]) -> bool:
        """Whether a result shares storage with an argument."""
        return any(_storage(one) in self._storages for one in results)


# What leaves every value where it is if the shape is the same.
_IN_ORDER = {"view", "view_as", "_unsafe_view", "reshape", "expand", "expand_as"}
_ELEMENTWISE = POINTWISE | LIKE | SUPPORT | {"alias", "lift_fresh", "lift", "scalar_tensor", "prim.device"}


def _sizes(one: Tensor) -> list[str]:
    """The shape as text: comparing symbolic sizes would narrow the graph down."""
    return [str(size) for size in one.shape]


def _storage(one: Any) -> Any:
    return one.untyped_storage()._cdata if isinstance(one, Tensor) else None


@contextlib.contextmanager
def functions_kept(refuse: Callable[[type], None]) -> Iterator[Kept]:
    """Record every traced call of a custom function in this thread as one node.

    Args:
        refuse: Called with each class before; raises for those that are not to be kept.
    """
    thread, kept = threading.get_ident(), Kept()
    module: Any = torch.autograd.function
    asked = module._is_setup_context_defined

    def ask(setup: Any) -> bool:
        """What ``apply`` calls first, even an alias of it (``f = F.apply``) that was taken long before."""
        function = sys._getframe(1).f_locals.get("cls")
        if threading.get_ident() == thread and isinstance(function, type):
            refuse(function)
            if not function.__module__.startswith("torch."):
                if torch._C._are_functorch_transforms_active():
                    raise _refusal(function, "is called within vmap or grad")
                _divert(function, asked(setup), kept)
        return bool(asked(setup))

    module._is_setup_context_defined = ask
    try:
        yield kept
    finally:
        module._is_setup_context_defined = asked
        for function in list(kept.diverted):
            _undivert(function, kept)
        for key in kept.keys:
            del _recorded[key]


def _divert(function: Any, bare: bool, kept: Kept) -> None:
    """Have the next call of ``function.forward`` in this thread recorded; ``bare`` if it takes no context."""
    thread, original = threading.get_ident(), function.forward
    kept.diverted[function] = function.__dict__.get("forward")

    @functools.wraps(original)
    def forward(*given: Any) -> Any:
        if threading.get_ident() != thread:
            return original(*given)
        _undivert(function, kept)
        context, arguments = ((), given) if bare else (given[:1], given[1:])
        try:
            return kept.record(function, arguments, functools.partial(original, *context))
        except CaptureError:
            raise
        except Exception as error:
            raise _refusal(function, f"cannot be traced ({type(error).__name__})") from error

    function.forward = staticmethod(forward)


def _undivert(function: Any, kept: Kept) -> None:
    own = kept.diverted.pop(function)
    if own is None:
        del function.forward
    else:
        function.forward = own
