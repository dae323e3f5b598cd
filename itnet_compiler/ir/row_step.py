"""The step of a loop as a program of one row: what the step does to one entry of its batch, the same to every one.

A loop that does nothing but elementwise operators, normalisations over the last axis, and products of rows with
matrices that all steps share, treats every row of its carried values alone. Its step is then written in the
primitives of pair programs (``ir.pair``), for which there are machine code and reverse differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .body import Call, Progression, Ref, refs_of
from .loop import Loop
from .pair.aten import BOOLEAN, OPERATORS, Number, Refusal
from .pair.builder import Builder
from .pair.program import PAIR, SHARED, Program, without_dead_values

__all__ = ["NotRows", "RowStep", "row_step"]

_KINDS = {"carry": "h", "step": "x"}


class NotRows(Exception):
    """The step is no program of one row; the text says why."""


@dataclass(frozen=True)
class RowStep:
    """One step of a loop for one row.

    Attributes:
        program: Inputs ``h0`` … (carried), ``x0`` … (of the step), and of what is shared ``w3`` (one vector or matrix
            for all rows) or ``r3`` (of every row its own), as the step uses the fourth; those that it does not use are
            left out. Outputs: the carried values after the step, then what is kept of every step.
        finals: Where each final value is found: (``True``, i) is carried value i after the last step, (``False``, i)
            output i of it.
    """

    program: Program
    finals: tuple[tuple[bool, int], ...]


def row_step(kernel: Loop) -> RowStep:
    """The step of ``kernel``. Raises ``NotRows``."""
    try:
        return _Reader(kernel).read()
    except (Refusal, ValueError, TypeError, KeyError, IndexError) as error:
        raise NotRows(f"the step does more than to rows alone: {error}") from error


class _Reader:
    def __init__(self, kernel: Loop) -> None:
        self.b, self.body = Builder(), kernel.body
        self.known: dict[Ref, Any] = {}
        self.rank = 0
        self.shared: dict[int, tuple[int, ...]] = {}
        self.masks: set[Ref] = set()
        self._inputs(kernel)

    def _inputs(self, kernel: Loop) -> None:
        shapes = dict(kernel.shapes)
        for role, kind in (("initial", "carry"), ("inputs", "step"), ("shared", "shared")):
            for index, found in enumerate(shapes.get(role, ())):
                is_mask = isinstance(found, tuple) and found[1] == "bool" and kind != "carry"
                if not isinstance(found, tuple) or not (is_mask or found[1] == "float"):
                    raise NotRows("an operand is neither a tensor of floats nor a mask")
                if is_mask:
                    self.masks.add(Ref(kind, index))
                shape = list(found[0])
                if kind == "step":
                    del shape[kernel.axes[index]]
                if kind == "shared":
                    self.shared[index] = tuple(shape)
                    continue
                if not shape:
                    raise NotRows("an operand has no axis in a step")
                self.rank = self.rank or len(shape)
                if len(shape) != self.rank:
                    raise NotRows("operands have several numbers of axes")
                ref = Ref(kind, index)
                self.known[ref] = self._given(ref, self.b.input(f"{_KINDS[kind]}{index}", PAIR, (shape[-1],)))
        if self.rank < 2:
            raise NotRows("there is no axis of rows")

    def _given(self, ref: Ref, value: int) -> int:
        """An input; masks are given as numbers."""
        return self.b.elementwise("ne", value, self.b.constant(0.0)) if ref in self.masks else value

    def read(self) -> RowStep:
        """The program."""
        for index, call in enumerate(self.body.calls):
            self.known[Ref("local", index)] = self._call(call)
        carried, outputs = (list(map(self._row, refs)) for refs in (self.body.carried, self.body.outputs))
        if not carried:
            raise NotRows("nothing is carried")
        if any(map(self._is_mask, (*carried, *outputs))):
            raise NotRows("a mask is carried or kept")
        for index, value in enumerate(carried):
            if self.b.shape(value) != self.b.shape(self.known[Ref("carry", index)]):
                raise NotRows("a carried value changes its width")
        program = without_dead_values(self.b.program([*carried, *outputs]))
        if any(side == SHARED and value.op not in ("input", "constant", "permute", "reshape", "expand")
               for value, side in zip(program.values, program.sides, strict=True)):  # fmt: skip
            raise NotRows("something is computed of what is shared alone, step by step")
        return RowStep(program, tuple(map(self._final, self.body.finals)))

    def _final(self, ref: Ref) -> tuple[bool, int]:
        for carried, refs in ((True, self.body.carried), (False, self.body.outputs)):
            if ref in refs:
                return carried, refs.index(ref)
        raise NotRows("a final value is neither carried nor kept")

    # ---- operands

    def _row(self, value: Any) -> int:
        """A value that every row has, or a vector or number that all of them share."""
        if not isinstance(value, Ref):
            raise NotRows(f"{value!r} stands where a value of a row is expected")
        if value.kind != "shared":
            found = self.known[value]
            if not isinstance(found, int):
                raise NotRows("several values stand where one is expected")
            return found
        shape = self.shared[value.index]
        if len(shape) == self.rank:
            return Number(self._given(value, self.b.input(f"r{value.index}", PAIR, shape[-1:])))
        if len(shape) > 1:
            raise NotRows("a shared matrix is no factor of a product")
        return Number(self._given(value, self.b.input(f"w{value.index}", SHARED, shape)))

    def _is_mask(self, value: int) -> bool:
        return self.b.values[value].op in BOOLEAN

    def _number(self, value: Any) -> int:
        """A row of numbers, or one number; a mask is zeros and ones."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return Number(self.b.constant(value))
        found = self._row(value)
        return Number(self.b.elementwise("real", found) if self._is_mask(found) else found)

    def _matrix(self, value: Any) -> int:
        if not isinstance(value, Ref) or value.kind != "shared" or len(self.shared[value.index]) != 2:
            raise NotRows("a product is not with a matrix that all steps share")
        return self.b.input(f"w{value.index}", SHARED, self.shared[value.index])

    def _is_last(self, axis: Any) -> None:
        if axis not in (-1, self.rank - 1):
            raise NotRows("an operator works along the rows")

    # ---- operators

    def _call(self, call: Call) -> Any:
        rule = _RULES.get(call.name)
        if rule is not None:
            if call.kwargs:
                raise NotRows(f"{call.name} with {call.kwargs[0][0]}")
            return rule(self, *call.args)
        if call.target not in OPERATORS or call.name not in _ELEMENTWISE:
            raise NotRows(f"{call.name} is not known to act on rows alone")
        if any(isinstance(ref, tuple) for ref in call.args):
            raise NotRows(f"{call.name} of several values")
        if any(isinstance(value, Progression) for value in call.args):
            raise NotRows("a number changes with the step")
        args = [Number(self._row(value)) if isinstance(value, Ref) else value for value in call.args]
        masks = [isinstance(value, Ref) and self._is_mask(arg) for value, arg in zip(call.args, args, strict=True)]
        if call.name in _OF_MASKS and not all(masks):
            raise NotRows(f"{call.name} of numbers")
        if any(masks) and call.name not in _OF_MASKS:
            if all(masks):
                raise NotRows(f"{call.name} of masks alone")
            args = [self._number(value) if isinstance(value, Ref) else value for value in call.args]
        kwargs = dict(call.kwargs)
        if any(True for _ in refs_of(tuple(kwargs.values()))):
            raise NotRows(f"{call.name} with a value by name")
        return Number(OPERATORS[call.target](self.b, *args, **kwargs))

    def linear(self, x: Any, weight: Any, bias: Any = None) -> int:
        """x Wᵀ + b."""
        product = self.b.linear(self._row(x), self._matrix(weight))
        return Number(product if bias is None else self.b.add(product, self._row(bias)))

    def matmul(self, x: Any, weight: Any) -> int:
        """x W."""
        return Number(self.b.linear(self._row(x), self.b.transpose(self._matrix(weight))))

    def addmm(self, bias: Any, x: Any, weight: Any) -> int:
        """b + x W."""
        return Number(self.b.add(self.matmul(x, weight), self._row(bias)))

    def layer_norm(self, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any) -> int:
        """Over the last axis."""
        if len(shape) != 1:
            raise NotRows("a normalisation over several axes")
        given = [None if one is None else self._row(one) for one in (weight, bias)]
        return Number(OPERATORS["aten.native_layer_norm.default"](self.b, self._row(x), shape, *given, eps)[0])

    def chunk(self, x: Any, chunks: int, axis: int = 0) -> list[Number]:
        """Equal parts of the last axis, the last one shorter."""
        size = self.b.shape(self._row(x))[-1]
        return self.split(x, max(1, -(-size // chunks)), axis)

    def split(self, x: Any, sizes: Any, axis: int = 0) -> list[Number]:
        """Parts of the last axis."""
        self._is_last(axis)
        value = self._row(x)
        width = self.b.shape(value)[-1]
        if isinstance(sizes, int):
            sizes = [min(sizes, width - start) for start in range(0, width, sizes)]
        starts = [sum(sizes[:place]) for place in range(len(sizes))]
        return [Number(self.b.slice(value, 0, start, start + size)) for start, size in zip(starts, sizes, strict=True)]

    def getitem(self, values: Any, index: int) -> int:
        """One of several values."""
        return Number(self.known[values][index])

    def slice(self, x: Any, axis: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> int:
        """Part of the last axis."""
        self._is_last(axis)
        value = self._row(x)
        low, high, by = slice(start, stop, step).indices(self.b.shape(value)[-1])
        return Number(self.b.slice(value, 0, low, high, by))

    def cat(self, parts: Any, axis: int = 0) -> int:
        """Values one behind the other in the last axis."""
        self._is_last(axis)
        if any(isinstance(part, Ref) and part.kind == "shared" for part in parts):
            raise NotRows("what is shared is joined to a row")
        return Number(self.b.cat([self._row(part) for part in parts], 0))

    def where(self, mask: Any, chosen: Any, other: Any) -> int:
        """Entries of one value where the mask says so, else of another."""
        condition = self._row(mask)
        if not self._is_mask(condition):
            raise NotRows("a choice by what is no mask")
        return Number(self.b.where(condition, self._number(chosen), self._number(other)))

    def masked_fill(self, x: Any, mask: Any, number: Any) -> int:
        """A number where the mask says so."""
        if isinstance(number, Ref):
            raise NotRows("a filling that is no number")
        return self.where(mask, number, x)

    def same(self, x: Any) -> int:
        """The value itself."""
        return Number(self._row(x))


Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {
    "linear": _Reader.linear,
    "matmul": _Reader.matmul,
    "mm": _Reader.matmul,
    "addmm": _Reader.addmm,
    "layer_norm": _Reader.layer_norm,
    "chunk": _Reader.chunk,
    "split": _Reader.split,
    "split_with_sizes": _Reader.split,
    "getitem": _Reader.getitem,
    "slice": _Reader.slice,
    "cat": _Reader.cat,
    "where": _Reader.where,
    "masked_fill": _Reader.masked_fill,
    "clone": _Reader.same,
    "contiguous": _Reader.same,
}
# Entry by entry: of masks, and all.
_OF_MASKS = set("logical_not bitwise_not logical_and bitwise_and __and__ logical_or bitwise_or __or__".split())
_ELEMENTWISE = _OF_MASKS | set(
    "neg abs exp log sqrt rsqrt reciprocal sin cos tanh sigmoid erf relu detach maximum minimum mul add sub rsub div"
    " pow square gelu silu softplus leaky_relu elu hardtanh clamp lt le gt ge eq ne".split()
)
