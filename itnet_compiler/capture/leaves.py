"""Leaves of a capture: functions kept as one node, although ``torch.export`` would look inside.

The fake implementation of ``aten.lstm.input`` and its kin is a Python loop over time steps, which fixes the sequence
length to the example's without a word; that of a cell computes a whole step, again for every step of a loop. While
``leaves_installed()`` is active, a traced call of such a function records a custom operator instead, whose fake
implementation computes shapes only; ``restore_leaf`` then puts the ATen operator back, so that no other part of the
compiler sees the custom one.

The same goes for known functions of libraries (``passes/known.py``), such as the selective scan of transformers' Mamba:
recorded as one operator, put back as a call of the function itself; and for ``associative_scan`` (``associative.py``).
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import is_fake
from torch.fx import GraphModule, Node
from torch.nn.modules import rnn
from torch.utils import _pytree as pytree

from ..passes.known import KnownCall, KnownFunction, known_functions
from . import associative

__all__ = ["LEAVES", "Leaf", "leaves_installed", "restore_leaf", "restore_leaves"]

_NAMESPACE = "itnet_leaf"


@dataclass(frozen=True)
class Leaf:
    """A function to keep whole.

    Attributes:
        name: Of the custom operator, ``itnet_leaf::<name>``.
        operator: The operator that the function runs, put back after the capture.
        shapes: Fake implementation: from the operator's arguments to empty outputs.
        places: Where Python code finds the function: (namespace, key) pairs, attributes or dictionary entries.
        accepts: Whether a call with these positional arguments is one of ``operator``.
    """

    name: str
    operator: OpOverload
    shapes: Callable[..., Any]
    places: tuple[tuple[Any, str], ...]
    accepts: Callable[[tuple[Any, ...]], bool]

    @property
    def custom(self) -> OpOverload:
        """The custom operator."""
        return getattr(getattr(torch.ops, _NAMESPACE), self.name).default

    def register(self) -> None:
        """Define the custom operator: same schema, runs the operator itself, shapes from ``shapes``."""
        schema = str(self.operator._schema)
        _library.define(self.name + schema[schema.index("(") :], tags=tuple(self.operator.tags))
        _library.impl(self.name, self.operator, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{_NAMESPACE}::{self.name}", self.shapes, lib=_library)


def _sequence_shapes(input: Tensor, hx: Any, params: Any, *flags: Any) -> tuple[Tensor, ...]:
    """(output, h) or (output, h, c) of a recurrent network: sizes of input and states, whatever the length."""
    bidirectional, batch_first = flags[-2:]
    states = hx if isinstance(hx, (list, tuple)) else [hx]
    features = states[0].shape[-1] * (2 if bidirectional else 1)
    sequence = input.transpose(0, 1) if batch_first else input
    output = input.new_empty((*sequence.shape[:-1], features))
    return (output.transpose(0, 1) if batch_first else output, *(state.new_empty(state.shape) for state in states))


def _is_sequence(arguments: tuple[Any, ...]) -> bool:
    """Whether a call is of the ``input`` overload: the ``data`` one, for packed sequences, has its weights there."""
    return len(arguments) == 9 and isinstance(arguments[3], bool)


def _cell_shapes(
    input: Tensor, hx: Any, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> Any:
    """State or states after one step: sizes of those before it."""
    states = hx if isinstance(hx, (list, tuple)) else [hx]
    torch._check_value(input.shape[1] == w_ih.shape[1], lambda: "a cell's input does not fit its weights")
    torch._check_value(states[0].shape[1] == w_hh.shape[1], lambda: "a cell's state does not fit its weights")
    for state in states:
        torch._check_value(state.shape[0] == input.shape[0], lambda: "a cell's input and state differ in batch size")
    after = [input.new_empty(state.shape) for state in states]
    if isinstance(hx, (list, tuple)):
        return tuple(after)
    gates = w_ih.shape[0] != w_hh.shape[1]
    return hx - after[0] if gates else after[0]  # of a GRU laid out as its state


def _is_cell(arguments: tuple[Any, ...]) -> bool:
    """Whether input and states are matrices, as ``nn.LSTMCell`` and its kin call it."""
    if len(arguments) < 4 or not isinstance(arguments[0], Tensor):
        return False
    states = arguments[1] if isinstance(arguments[1], (list, tuple)) else [arguments[1]]
    return all(isinstance(one, Tensor) and one.dim() == 2 for one in (arguments[0], *states))


def _cell(name: str) -> Leaf:
    return Leaf(name, getattr(torch.ops.aten, name).default, _cell_shapes, ((torch._VF, name), (torch, name)), _is_cell)


def _recurrence(name: str, *places: tuple[Any, str]) -> Leaf:
    everywhere = ((torch._VF, name), (torch, name), *places)
    return Leaf(name, getattr(torch.ops.aten, name).input, _sequence_shapes, everywhere, _is_sequence)


LEAVES: tuple[Leaf, ...] = (
    _recurrence("lstm"),
    _recurrence("gru"),
    _recurrence("rnn_tanh", (rnn._rnn_impls, "RNN_TANH")),
    _recurrence("rnn_relu", (rnn._rnn_impls, "RNN_RELU")),
    *(_cell(name) for name in ("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")),
)

_library = torch.library.Library(_NAMESPACE, "FRAGMENT")
for _leaf in LEAVES:
    _leaf.register()


def _operator_of(known: KnownFunction) -> OpOverload:
    """The operator recorded for a known function; its last argument says which function it was."""
    space = getattr(torch.ops, _NAMESPACE)
    if not hasattr(space, known.name):
        arguments, results = known.schema.split(")", 1)
        _library.define(f"{known.name}{arguments}, str function){results}", tags=(torch.Tag.pt2_compliant_tag,))
        shapes = known.shapes
        torch.library.register_fake(f"{_NAMESPACE}::{known.name}", lambda *given: shapes(*given[:-1]), lib=_library)
    return getattr(space, known.name).default


class _Installed(threading.local):
    """How many ``leaves_installed()`` this thread is in."""

    depth = 0


_here = _Installed()
_lock = threading.Lock()
_everywhere = 0
_originals: list[tuple[Any, str, Any]] = []
_ABSENT = object()


@contextlib.contextmanager
def leaves_installed() -> Iterator[None]:
    """Record every traced call of a leaf in this thread as one node.

    The functions are replaced where Python code finds them, for as long as any thread is inside. Another thread, a
    call on real tensors, a call under autocast (which decides dtypes inside the function) and a packed sequence get
    the original.
    """
    global _everywhere
    from torch._dynamo import trace_rules  # slow to import; torch.export does so anyway

    # Dynamo looks functions up by name once and for all: not while stand-ins are in their places.
    trace_rules.get_torch_obj_rule_map()
    with _lock:
        if _everywhere == 0:
            _replace()
        _everywhere += 1
    _here.depth += 1
    try:
        yield
    finally:
        _here.depth -= 1
        with _lock:
            _everywhere -= 1
            if _everywhere == 0:
                _restore()


def restore_leaf(node: Node) -> bool:
    """Put the operator back into ``node``, if it is a leaf recorded by a capture. Returns whether it was one."""
    return _restored(node, _recorded())


def restore_leaves(module: GraphModule) -> int:
    """``restore_leaf`` for a whole graph and those nested in it (``no_grad`` blocks); how many leaves there were."""
    count, recorded = 0, _recorded()
    for nested in module.modules():
        if isinstance(nested, GraphModule):
            found = sum(_restored(node, recorded) for node in nested.graph.nodes)
            if found:
                nested.recompile()
            count += found
    return count


def _recorded() -> dict[OpOverload, Leaf | KnownFunction]:
    """What the custom operators stand for."""
    known = {_operator_of(function): function for function in known_functions()}
    return {leaf.custom: leaf for leaf in LEAVES} | known


def _restored(node: Node, recorded: dict[OpOverload, Leaf | KnownFunction]) -> bool:
    found = recorded.get(node.target) if isinstance(node.target, OpOverload) else None
    if found is None:
        return associative.restore(node)
    if isinstance(found, Leaf):
        node.target = found.operator
        return True
    *arguments, place = node.args
    module, name = str(place).split(":")
    function = operator.attrgetter(name)(sys.modules[module])
    node.target, node.args = KnownCall(found, function), tuple(arguments)
    return True


def _replace() -> None:
    for leaf in LEAVES:
        for namespace, key in leaf.places:
            if isinstance(namespace, dict):
                original = kept = namespace[key]
                namespace[key] = _stand_in(leaf, original)
            else:
                original, kept = getattr(namespace, key), vars(namespace).get(key, _ABSENT)
                setattr(namespace, key, _stand_in(leaf, original))
            _originals.append((namespace, key, kept))
    module, name = associative.place()
    _originals.append((module, name, getattr(module, name)))
    setattr(module, name, associative.stand_in(getattr(module, name), lambda leaves: _is_recorded(tuple(leaves))))
    for known in known_functions():
        for owner, name, place in known.places():
            original = getattr(owner, name)
            setattr(owner, name, _known_stand_in(known, original, place))
            _originals.append((owner, name, original))


def _restore() -> None:
    while _originals:
        namespace, key, kept = _originals.pop()
        if isinstance(namespace, dict):
            namespace[key] = kept
        elif kept is _ABSENT:
            delattr(namespace, key)
        else:
            setattr(namespace, key, kept)


def _stand_in(leaf: Leaf, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **keywords: Any) -> Any:
        if not keywords and leaf.accepts(arguments) and _is_recorded(arguments):
            return leaf.custom(*arguments)
        return original(*arguments, **keywords)

    return call


def _known_stand_in(known: KnownFunction, original: Callable[..., Any], place: str) -> Callable[..., Any]:
    signature, custom = inspect.signature(original), _operator_of(known)

    def call(*arguments: Any, **keywords: Any) -> Any:
        if _is_recorded((*arguments, *keywords.values())):
            bound = signature.bind(*arguments, **keywords)
            bound.apply_defaults()
            recorded = known.arguments(bound.arguments)
            if recorded is not None:
                return known.result(custom(*recorded, place), bound.arguments)
        return original(*arguments, **keywords)

    return call


def _is_recorded(arguments: tuple[Any, ...]) -> bool:
    return _here.depth > 0 and _is_traced(arguments)


def _is_traced(arguments: tuple[Any, ...]) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    return any(is_fake(tensor) for tensor in tensors) and not torch.is_autocast_enabled(tensors[0].device.type)
