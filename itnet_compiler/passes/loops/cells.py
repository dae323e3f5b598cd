"""Cores that are recurrent layers: LSTM, GRU and Elman cells, called or written out, become one ``Gated`` node.

Written out, gates may come in any order, from one product or several, with the state and the input joined or apart;
slices of the weights are then put in the library's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from ...ir.body import Ref
from ...ir.domain import Past
from ...ir.gated import Gated
from ...ir.kernel import Spec
from .core import Core
from .emitter import Emitter
from .gates import Gate, NotAGate, Reader, Rows

__all__ = ["as_layer"]


@dataclass
class _Cell:
    """A cell that was recognised.

    Attributes:
        kind: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        states: Carried values h, for an LSTM also c.
        given: The whole input, with its axis of time.
        weights: W_ih, W_hh, and b_ih, b_hh where there are biases, made when they are needed.
    """

    kind: str
    states: tuple[int, ...]
    given: tuple[Node, int]
    weights: Callable[[Emitter], list[Node]]


def as_layer(core: Core, emit: Emitter, integral: Callable[..., Node]) -> list[Node] | None:
    """The core as a library layer, if that is what it is."""
    try:
        cell = _called(core) or _lstm(core) or _gru(core) or _elman(core)
    except NotAGate:
        return None
    if cell is None or not _fits(core, cell):
        return None
    source, axis = cell.given
    weights = cell.weights(emit)
    hidden: Any = [emit("aten.unsqueeze.default", core.initial[state], 0) for state in cell.states]
    kernel = Gated(cell.kind, bias=len(weights) == 4, training=True, batch_first=axis == 1)
    operands = {"input": source, "hidden": hidden if cell.kind == "lstm" else hidden[0], "weights": weights}
    spec = Spec(kernel, Past(), f"{cell.kind.split('_')[0]} loop", tuple(operands))
    state = [core.types[Ref("carry", index)] for index in cell.states]
    values = (emit.run(_sequence, source.meta["val"], state[0]), *(emit.run(_alone, value) for value in state))
    sequence, *last = emit.pieces(integral(spec, operands, values))
    # Its order in memory is that of the library.
    made = [emit("aten.contiguous.default", sequence) for _ in core.stacked]
    core.stacked = [axis] * len(made)
    after = [core.body.carried[index] for index in cell.states]
    return made + [emit("aten.squeeze.dim", last[after.index(ref)], 0) for ref in core.body.finals]


def _sequence(source: Tensor, state: Tensor) -> Tensor:
    return source.new_empty((*source.shape[:-1], state.shape[-1]))


def _alone(state: Tensor) -> Tensor:
    return state.unsqueeze(0).clone()


def _fits(core: Core, cell: _Cell) -> bool:
    """Whether what is needed of the core is what a layer returns, and its operands are what a layer takes."""
    after = [core.body.carried[index] for index in cell.states]
    if len(core.body.carried) != len(cell.states):
        return False
    source, axis = cell.given
    state = core.types[Ref("carry", cell.states[0])]
    flat = source.meta["val"].dim() == 3 and axis in (0, 1) and state.dim() == 2
    kept = all(ref == after[0] for ref in core.body.outputs) and all(ref in after for ref in core.body.finals)
    same = source.meta["val"].dtype == state.dtype and state.is_floating_point()
    return flat and kept and same


# ---- cells that are called


def _called(core: Core) -> _Cell | None:
    """``lstm_cell`` and its kin: one call, of which nothing but the results is used."""
    cells = [index for index, call in enumerate(core.body.calls) if call.name.endswith("_cell")]
    if len(cells) != 1:
        return None
    index, call = cells[0], core.body.calls[cells[0]]
    given, hidden, *weights = call.args
    kind = call.name.removesuffix("_cell")
    results = [Ref("local", index)]
    if kind == "lstm":
        places = {
            (c.args[0], c.args[1]): Ref("local", i) for i, c in enumerate(core.body.calls) if c.target == "getitem"
        }
        results = [places.get((Ref("local", index), item), Ref("local", -1)) for item in (0, 1)]
    states = hidden if isinstance(hidden, tuple) else (hidden,)
    if (
        given.kind != "step"
        or any(ref.kind != "carry" for ref in states)
        or len(core.body.calls) > 1 + 2 * (kind == "lstm")
    ):
        return None
    # The state that is handed on must be the one that the next call takes, in the same role.
    if any(core.body.carried[ref.index] != result for ref, result in zip(states, results, strict=True)):
        return None
    biases = [weight for weight in weights if weight is not None]
    if len(biases) not in (2, 4) or any(weight.kind != "shared" for weight in biases):
        return None
    nodes = [core.shared[weight.index] for weight in biases]
    return _Cell(kind, tuple(ref.index for ref in states), core.inputs[given.index], lambda emit: nodes)


# ---- cells that are written out


def _lstm(core: Core) -> _Cell | None:
    """c' = σ(F)·c + σ(I)·tanh(G), h' = σ(O)·tanh(c')."""
    if len(core.body.carried) != 2:
        return None
    for h, c in ((0, 1), (1, 0)):
        reader, body = Reader(core, h), core.body
        output = _factors(reader, body.carried[h])
        terms = _terms(reader, body.carried[c])
        if len(output) != 2 or len(terms) != 2:
            continue
        o = next((ref for ref in output if _is(reader, ref, "sigmoid")), None)
        cell = next((ref for ref in output if _is(reader, ref, "tanh")), None)
        kept = next((t for t in terms if Ref("carry", c) in t), None)
        new = next((t for t in terms if t is not kept), ())
        if o is None or cell is None or kept is None or len(new) != 2 or reader.call(cell)[1][0] != body.carried[c]:
            continue
        f = kept[1 - kept.index(Ref("carry", c))]
        i = next((ref for ref in new if _is(reader, ref, "sigmoid")), None)
        g = next((ref for ref in new if ref != i and _is(reader, ref, "tanh")), None)
        if i is None or g is None or not _is(reader, f, "sigmoid"):
            continue
        gates = [
            _activated(reader, ref, act) for ref, act in ((i, "sigmoid"), (f, "sigmoid"), (g, "tanh"), (o, "sigmoid"))
        ]
        return _written("lstm", (h, c), core, gates)
    return None


def _gru(core: Core) -> _Cell | None:
    """h' = (1 − z)·n + z·h, n = tanh(N_x + r·N_h), in any of the forms of that mean."""
    if len(core.body.carried) != 1:
        return None
    reader = Reader(core, 0)
    found = _mean(reader, core.body.carried[0])
    if found is None:
        return None
    z, n, turned = found
    if not _is(reader, z, "sigmoid") or not _is(reader, n, "tanh"):
        return None
    sources = _terms(reader, reader.call(reader.slice_of(n)[0])[1][0])
    if len(sources) != 2:
        return None
    gated = next((term for term in sources if len(term) == 2), None)
    plain = next((term for term in sources if len(term) == 1), None)
    if gated is None or plain is None:
        return None
    for r, state in (gated, gated[::-1]):
        if _is(reader, r, "sigmoid"):
            fresh, old = reader.gate(plain[0]), reader.gate(state)
            if fresh.carried or old.given:
                raise NotAGate
            candidate = Gate(fresh.given, old.carried, fresh.given_bias, [*old.given_bias, *old.carried_bias])
            update = _activated(reader, z, "sigmoid")
            return _written(
                "gru", (0,), core, [_activated(reader, r, "sigmoid"), update.negated() if turned else update, candidate]
            )
    return None


def _elman(core: Core) -> _Cell | None:
    """h' = tanh(W x + U h + b), or max(0, ·)."""
    if len(core.body.carried) != 1:
        return None
    reader = Reader(core, 0)
    name, args = reader.call(core.body.carried[0])
    if name not in ("tanh", "relu"):
        return None
    return _written(f"rnn_{name}", (0,), core, [reader.gate(args[0])])


def _mean(reader: Reader, value: Any) -> tuple[Any, Any, bool] | None:
    """z and n of (1 − z)·n + z·h; the flag says that it is z·n + (1 − z)·h."""
    state = Ref("carry", 0)
    name, args = reader.call(value)
    if name == "lerp" and state in args[:2]:
        start, end, weight = args
        return (weight, start, False) if end == state else (weight, end, True)
    terms = _terms(reader, value)
    if len(terms) != 2:
        return None
    for first, second in (terms, terms[::-1]):
        if len(first) == 1 and len(second) == 2:  # n + z·(h − n), or h + z·(n − h)
            for z, difference in (second, second[::-1]):
                name, args = reader.call(difference)
                if name == "sub" and args[1] == first[0] and state in args[:2]:
                    return (z, first[0], False) if args[0] == state else (z, args[0], True)
        if len(first) == 2 and len(second) == 2:
            for rest, n in (first, first[::-1]):
                z = _complement(reader, rest)
                if z is not None and z in second:
                    other = second[1 - second.index(z)]
                    if other == state:
                        return z, n, False
                    if n == state:
                        return z, other, True
    return None


def _complement(reader: Reader, value: Any) -> Any:
    """z of 1 − z."""
    name, args = reader.call(value)
    if name == "rsub" and args[1:] in ((1,), (1.0,), (1, 1)):
        return args[0]
    if name == "sub" and args[0] in (1, 1.0):
        return args[1]
    return None


def _terms(reader: Reader, value: Any) -> list[tuple[Any, ...]]:
    """The two terms of a sum, each as its factors."""
    name, args = reader.call(value)
    if name == "addcmul" and len(args) == 3:
        return [tuple(_factors(reader, args[0])) or (args[0],), args[1:]]
    if name != "add" or len(args) != 2:
        return []
    return [tuple(_factors(reader, part)) or (part,) for part in args]


def _factors(reader: Reader, value: Any) -> list[Any]:
    name, args = reader.call(value)
    return list(args) if name == "mul" and len(args) == 2 else []


def _is(reader: Reader, value: Any, name: str) -> bool:
    """Whether a value is that activation, or a slice of it."""
    return isinstance(value, Ref) and reader.call(reader.slice_of(value)[0])[0] == name


def _activated(reader: Reader, value: Any, name: str) -> Gate:
    """The gate under an activation; what is a slice of an activation is the activation of a slice."""
    whole, start = reader.slice_of(value)
    found, args = reader.call(whole)
    if found != name:
        raise NotAGate
    return reader.gate(args[0], start, reader.width(value))


# ---- weights in the library's order


def _written(kind: str, states: tuple[int, ...], core: Core, gates: Sequence[Gate]) -> _Cell | None:
    if any(len(gate.given) != 1 or len(gate.carried) != 1 for gate in gates):
        raise NotAGate
    sources = {(gate.given[0][0], gate.given[0][1]) for gate in gates}
    units = core.types[Ref("carry", states[0])].shape[-1]
    widths = {gate.carried[0].count for gate in gates} | {gate.given[0][2].count for gate in gates}
    if len(sources) != 1 or widths != {units}:
        raise NotAGate

    def weights(emit: Emitter) -> list[Node]:
        found = [
            _joined(emit, [gate.given[0][2] for gate in gates]),
            _joined(emit, [gate.carried[0] for gate in gates]),
        ]
        biases = [[gate.given_bias for gate in gates], [gate.carried_bias for gate in gates]]
        if any(parts for side in biases for parts in side):
            found += [_bias(emit, side, found[0], units) for side in biases]
        return found

    return _Cell(kind, states, sources.pop(), weights)


def _joined(emit: Emitter, parts: list[Rows]) -> Node:
    """Rows under one another; the tensor itself where they are all of its rows, in order."""
    first = parts[0]
    ends = [first.start + sum(part.count for part in parts[:place]) for place in range(len(parts))]
    alike = all(
        (part.node, part.turned, part.columns, part.sign, part.start)
        == (first.node, first.turned, first.columns, first.sign, end)
        for part, end in zip(parts, ends, strict=True)
    )
    if alike:
        total = sum(part.count for part in parts)
        return _cut(emit, Rows(first.node, first.start, total, first.turned, first.columns, first.sign))
    return emit("aten.cat.default", [_cut(emit, part) for part in parts], 0)


def _cut(emit: Emitter, rows: Rows) -> Node:
    node = emit("aten.t.default", rows.node) if rows.turned else rows.node
    for axis, (start, count) in enumerate([(rows.start, rows.count), rows.columns or (0, None)]):
        if count is not None and (start, count) != (0, node.meta["val"].shape[axis]):
            node = emit("aten.slice.Tensor", node, axis, start, start + count, 1)
    return node if rows.sign > 0 else emit("aten.neg.default", node)


def _bias(emit: Emitter, side: list[list[Rows | float]], like: Node, units: int) -> Node:
    """Biases of all gates on one side, one after the other; zeros where there are none."""
    if all(len(parts) == 1 and isinstance(parts[0], Rows) for parts in side):
        return _joined(emit, [parts[0] for parts in side])  # type: ignore[misc]
    if not any(side):
        return emit("aten.new_zeros.default", like, [units * len(side)])
    pieces = []
    for parts in side:
        numbers = sum(part for part in parts if not isinstance(part, Rows))
        piece = emit("aten.new_full.default", like, [units], numbers)
        for part in parts:
            if isinstance(part, Rows):
                piece = emit("aten.add.Tensor", piece, _cut(emit, part))
        pieces.append(piece)
    return emit("aten.cat.default", pieces, 0)
