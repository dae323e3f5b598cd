"""Cores that are affine in what they carry, entry by entry: h_t = a_t ⊙ h_{t−1} + b_t, one linear scan each.

Affinity is derived operator by operator: every value is written as a·h + b with a and b that do not depend on h. What
carried values depend on one another only in one direction become scans one after the other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.body import Call, Ref, refs_of
from ...ir.domain import Past
from ...ir.kernel import Spec
from ...ir.semiseparable import Diagonal
from .batching import Lifted, batched
from .core import Core
from .emitter import Emitter
from .unrolled import key_of

__all__ = ["as_scans"]

Maker = Callable[..., Node]


class _NotAffine(Exception):
    """The carried value goes through something else than sums and products."""


@dataclass(frozen=True)
class _Value:
    """A coefficient: a node or a number, and whether it has the time axis."""

    node: Any
    timed: bool

    @property
    def rank(self) -> int:
        """Axes in one step."""
        found = self.node.meta["val"] if isinstance(self.node, Node) else None
        return found.dim() - self.timed if isinstance(found, Tensor) else 0


@dataclass(frozen=True)
class _Affine:
    """a·h + b; None is 0."""

    a: _Value | None
    b: _Value | None


def as_scans(core: Core, emit: Emitter, integral: Maker) -> list[Node] | None:
    """The core as linear scans, if that is what it is."""
    if any(not _is_state(core.types[Ref("carry", index)]) for index in range(len(core.body.carried))):
        return None
    try:
        return _Scans(core, emit, integral).run()
    except _NotAffine:
        return None


def _is_state(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


class _Scans:
    def __init__(self, core: Core, emit: Emitter, integral: Maker) -> None:
        self.core, self.emit, self.integral = core, emit, integral
        self.timed: dict[Ref, Node] = {}
        self.states: dict[int, Node] = {}
        self.last: dict[int, Node] = {}
        self.needs = self._dependences()

    def run(self) -> list[Node]:
        """All scans, then what is asked of the core, with time in front; ``core.stacked`` says so from now on."""
        if not self.core.body.carried:
            raise _NotAffine
        waiting = set(range(len(self.core.body.carried)))
        while waiting:
            ready = next((i for i in sorted(waiting) if self._needs(i) <= {i} | set(self.states)), None)
            if ready is None:
                raise _NotAffine
            self._scan(ready)
            waiting.remove(ready)
        self.core.stacked = [0] * len(self.core.stacked)
        made = [self._all(ref) for ref in self.core.body.outputs]
        return made + [self._final(ref) for ref in self.core.body.finals]

    def _final(self, ref: Ref) -> Node:
        for index, after in enumerate(self.core.body.carried):
            if after == ref:
                return self.last[index]
        return self.emit("aten.select.int", self._all(ref), 0, -1)

    # ---- what depends on what

    def _dependences(self) -> list[set[int]]:
        """Carried values that each local depends on."""
        found: list[set[int]] = []
        for call in self.core.body.calls:
            needs: set[int] = set()
            for ref in refs_of(call):
                needs |= self._of(ref, found)
            found.append(needs)
        return found

    @staticmethod
    def _of(ref: Ref, found: list[set[int]]) -> set[int]:
        if ref.kind == "carry":
            return {ref.index}
        return found[ref.index] if ref.kind == "local" else set()

    def _needs(self, index: int) -> set[int]:
        return self._of(self.core.body.carried[index], self.needs)

    # ---- scans

    def _scan(self, index: int) -> None:
        core, after = self.core, self.core.body.carried[index]
        form = self.affine(after, index)
        if form.a is None or not (form.b or form.a).timed:
            raise _NotAffine
        initial = core.initial[index]
        decay = form.a.node
        given = form.b.node if form.b is not None else self.emit("aten.zeros_like.default", decay)
        rank = core.types[Ref("carry", index)].dim()
        given = self._lifted(given, rank)
        if key_of(given.meta["val"])[2][1:] != key_of(core.types[Ref("carry", index)])[2]:
            row = self.emit("aten.unsqueeze.default", initial, 0)
            given = self.emit("getitem", self.emit("aten.broadcast_tensors.default", [given, row]), 0)
        kind = core.types[Ref("carry", index)]
        if given.meta["val"].dtype != kind.dtype:
            raise _NotAffine
        if not isinstance(decay, Node):
            # A number of Python is not rounded to half precision before it is multiplied with.
            wide = {"dtype": torch.float32} if kind.dtype in (torch.bfloat16, torch.float16) else {}
            decay = self.emit("aten.new_full.default", initial, [1] * rank, decay, **wide)
        elif form.a.timed:
            decay = self._lifted(decay, rank)
        constant = not form.a.timed
        spec = Spec(Diagonal(constant=constant), Past(), "linear recurrence", ("decay", "input", "initial"))
        operands = {"decay": decay, "input": given, "initial": initial}
        values = (self.emit.run(lambda v: v.new_empty(v.shape), given), self.emit.run(lambda v: v.clone(), initial))
        self.states[index], self.last[index] = self.emit.pieces(self.integral(spec, operands, values))
        self.timed.setdefault(after, self.states[index])

    # ---- affine forms

    def affine(self, value: Any, index: int) -> _Affine:
        """``value`` in terms of carried value ``index`` of the step before."""
        if value == Ref("carry", index):
            return _Affine(_Value(1, False), None)
        if not isinstance(value, Ref) or index not in self._of(value, self.needs):
            return _Affine(None, self.value(value))
        call = self.core.body.calls[value.index]
        rule = _RULES.get(call.name)
        if rule is None or call.kwargs:
            raise _NotAffine
        return rule(self, call, index)

    def _free(self, ref: Ref) -> Node:
        """A value that does not depend on the carried one, with the time axis where it changes, ranks aligned."""
        return self._all(ref) if ref.kind != "shared" else self.core.shared[ref.index]

    def _all(self, ref: Ref) -> Node:
        """All steps of a value that is given, or follows from scans made before; time in front."""
        if ref not in self.timed:
            self.timed[ref] = self._made(ref)
        return self.timed[ref]

    def _made(self, ref: Ref) -> Node:
        if ref.kind == "step":
            node, axis = self.core.inputs[ref.index]
            return self.emit("aten.movedim.int", node, axis, 0) if axis else node
        if ref.kind == "carry":  # the states, one step late
            row = self.emit("aten.unsqueeze.default", self.core.initial[ref.index], 0)
            kept = self.emit("aten.slice.Tensor", self.states[ref.index], 0, 0, -1, 1)
            return self.emit("aten.cat.default", [row, kept], 0)
        if ref.kind != "local" or not self.needs[ref.index] <= set(self.states):
            raise _NotAffine
        call = batched(
            self.core.body.calls[ref.index], self.core.types.__getitem__, lambda r: r.kind != "shared", self.core.steps
        )
        if call is None:
            raise _NotAffine
        return self._emit(call)

    def _emit(self, call: Call) -> Node:
        args = [self._operand(value) for value in call.args]
        return self.emit(call.target, *args, **{name: self._operand(value) for name, value in call.kwargs})

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Lifted):
            return self._lifted(self._all(value.ref), value.rank)
        if isinstance(value, Ref):
            return self._free(value)
        if isinstance(value, Call):
            return self._emit(value)
        return [self._operand(item) for item in value] if isinstance(value, tuple) else value

    def _lifted(self, node: Node, rank: int) -> Node:
        for _ in range(rank + 1 - node.meta["val"].dim()):
            node = self.emit("aten.unsqueeze.default", node, 1)
        return node

    # ---- arithmetic on coefficients

    def value(self, value: Any) -> _Value:
        """An operand that does not depend on the carried value."""
        if not isinstance(value, Ref):
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise _NotAffine
            return _Value(value, False)
        return _Value(self._free(value), value.kind != "shared")

    def combine(self, target: str, left: _Value, right: _Value) -> _Value:
        """An elementwise operator on two coefficients."""
        if not isinstance(left.node, Node) and not isinstance(right.node, Node):
            return _Value(_NUMBERS[target](left.node, right.node), False)
        rank = max(left.rank, right.rank)
        x, y = (self._lifted(v.node, rank) if v.timed else v.node for v in (left, right))
        timed = left.timed or right.timed
        if isinstance(x, Node):
            return _Value(self.emit(f"aten.{target}.Tensor", x, y), timed)
        if target == "sub":
            return _Value(self.emit("aten.rsub.Scalar", y, x), timed)
        if target == "div":
            return _Value(self.emit("aten.mul.Tensor", self.emit("aten.reciprocal.default", y), x), timed)
        return _Value(self.emit(f"aten.{target}.Tensor", y, x), timed)

    def plus(self, left: _Value | None, right: _Value | None) -> _Value | None:
        """The sum of two coefficients."""
        if left is None or right is None:
            return left if right is None else right
        return self.combine("add", left, right)

    def minus(self, left: _Value | None, right: _Value | None) -> _Value | None:
        """The difference of two coefficients."""
        if right is None:
            return left
        return self.combine("sub", left or _Value(0, False), right)

    def times(self, left: _Value | None, right: _Value) -> _Value | None:
        """The product of a coefficient with a factor."""
        if left is None:
            return None
        if left.node == 1 and not isinstance(left.node, Node):
            return right
        return self.combine("mul", left, right)

    def over(self, left: _Value | None, right: _Value) -> _Value | None:
        """The quotient of a coefficient and a divisor."""
        return None if left is None else self.combine("div", left, right)

    def chosen(self, mask: _Value, left: _Value | None, right: _Value | None) -> _Value | None:
        """One coefficient or the other, as a mask says."""
        if left is None and right is None:
            return None
        x, y = left or _Value(0.0, False), right or _Value(0.0, False)
        rank = max(mask.rank, x.rank, y.rank)
        args = [self._lifted(v.node, rank) if v.timed else v.node for v in (mask, x, y)]
        args = [float(v) if isinstance(v, int) else v for v in args]
        kinds = isinstance(args[1], Node), isinstance(args[2], Node)
        overload = {(True, True): "self", (True, False): "ScalarOther", (False, True): "ScalarSelf"}.get(
            kinds, "Scalar"
        )
        return _Value(self.emit(f"aten.where.{overload}", *args), mask.timed or x.timed or y.timed)


def _sum(scans: _Scans, call: Call, index: int) -> _Affine:
    left, right = (scans.affine(value, index) for value in _two(call))
    return _Affine(scans.plus(left.a, right.a), scans.plus(left.b, right.b))


def _difference(scans: _Scans, call: Call, index: int) -> _Affine:
    left, right = (scans.affine(value, index) for value in _two(call))
    if call.name == "rsub":
        left, right = right, left
    return _Affine(scans.minus(left.a, right.a), scans.minus(left.b, right.b))


def _product(scans: _Scans, call: Call, index: int) -> _Affine:
    left, right = (scans.affine(value, index) for value in _two(call))
    if left.a is not None and right.a is not None:
        raise _NotAffine
    form, factor = (left, right) if left.a is not None else (right, left)
    if factor.b is None:
        raise _NotAffine
    return _Affine(scans.times(form.a, factor.b), scans.times(form.b, factor.b))


def _quotient(scans: _Scans, call: Call, index: int) -> _Affine:
    left, right = (scans.affine(value, index) for value in _two(call))
    if right.a is not None or right.b is None:
        raise _NotAffine
    return _Affine(scans.over(left.a, right.b), scans.over(left.b, right.b))


def _negative(scans: _Scans, call: Call, index: int) -> _Affine:
    form = scans.affine(call.args[0], index)
    return _Affine(scans.minus(None, form.a), scans.minus(None, form.b))


def _lerp(scans: _Scans, call: Call, index: int) -> _Affine:
    """start + w·(end − start)."""
    start, end, weight = (scans.affine(value, index) for value in call.args)
    if weight.a is not None or weight.b is None:
        raise _NotAffine
    parts = [(start.a, end.a), (start.b, end.b)]
    return _Affine(*(scans.plus(s, scans.times(scans.minus(e, s), weight.b)) for s, e in parts))


def _sum_of_product(scans: _Scans, call: Call, index: int) -> _Affine:
    first = scans.affine(call.args[0], index)
    second = _product(scans, Call("aten.mul.Tensor", call.args[1:]), index)
    return _Affine(scans.plus(first.a, second.a), scans.plus(first.b, second.b))


def _choice(scans: _Scans, call: Call, index: int) -> _Affine:
    mask, left, right = (scans.affine(value, index) for value in call.args)
    if mask.a is not None or mask.b is None:
        raise _NotAffine
    return _Affine(scans.chosen(mask.b, left.a, right.a), scans.chosen(mask.b, left.b, right.b))


def _same(scans: _Scans, call: Call, index: int) -> _Affine:
    return scans.affine(call.args[0], index)


def _two(call: Call) -> tuple[Any, ...]:
    """The operands of a binary operator without further factors."""
    if len(call.args) == 3 and call.args[2] == 1:
        return call.args[:2]
    if len(call.args) != 2:
        raise _NotAffine
    return call.args


_NUMBERS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
}
_RULES: dict[str, Callable[[_Scans, Call, int], _Affine]] = {
    "add": _sum,
    "sub": _difference,
    "rsub": _difference,
    "mul": _product,
    "div": _quotient,
    "neg": _negative,
    "lerp": _lerp,
    "addcmul": _sum_of_product,
    "where": _choice,
    **dict.fromkeys("clone contiguous alias".split(), _same),
}
