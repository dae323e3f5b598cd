"""Splits a pair program into what is of the query alone, of the source alone, of neither, and of the pair.

Linear maps are applied to each additive part of their argument, so that the first layer of a network on concatenated
or subtracted features becomes a query part, a source part and a relative part:

    W·[p_i − p_j, u_i, v_j] + b  =  (W_u·u_i + b)  +  W_v·v_j  +  W_p·(p_i − p_j)

What is of one side is evaluated once a position, not once a pair. Differences that are narrow (positions), or that no
matrix or sum is applied to, are not split: it would save nothing, and of near points lose the digits that matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .builder import Builder
from .program import PAIR, QUERY, SHARED, SOURCE, Program, Value, without_dead_values

__all__ = ["Stages", "distribute", "stages"]

NARROW = 4

# Linear in the first argument if the others are shared.
_LINEAR = {"neg", "mul", "div", "linear", "reshape", "permute", "expand", "slice", "sum"}


@dataclass(frozen=True)
class Stages:
    """A program in four. Names of the core's inputs are those of the others' outputs.

    Attributes:
        shared, query, source: Programs of the original inputs; their outputs in order are ``names[side]``.
        core: What is left for each pair.
        names: By side (``SHARED``, ``QUERY``, ``SOURCE``): the core's inputs.
    """

    shared: Program
    query: Program
    source: Program
    core: Program
    names: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

    def of(self, side: int) -> Program:
        """The program of one side."""
        return (self.shared, self.query, self.source)[side]


@lru_cache(maxsize=256)
def stages(program: Program) -> Stages:
    """Cut a program at the last values of each side."""
    program = without_dead_values(program)
    cut: dict[int, None] = {}
    for number, value in enumerate(program.values):
        if program.sides[number] == PAIR:
            cut.update((arg, None) for arg in value.args if program.sides[arg] != PAIR)
    cut.update((output, None) for output in program.outputs if program.sides[output] != PAIR)
    frontier = [number for number in cut if program.values[number].op != "constant"]
    names: tuple[list[str], list[str], list[str]] = ([], [], [])
    numbers: tuple[list[int], list[int], list[int]] = ([], [], [])
    core = Builder()
    new: dict[int, int] = {}
    for number in sorted(frontier):
        side = program.sides[number]
        name = f"{'pqs'[side]}{len(names[side])}"
        names[side].append(name)
        numbers[side].append(number)
        new[number] = core.input(name, side, program.values[number].shape)
    for number, value in enumerate(program.values):
        if number not in new and (program.sides[number] == PAIR or value.op == "constant"):
            new[number] = core.emit(value.op, tuple(new[arg] for arg in value.args), value.shape, value.attrs)
    shared, query, source = (without_dead_values(Program(program.values, tuple(found))) for found in numbers)
    outputs = tuple(new[output] for output in program.outputs)
    given = (tuple(names[SHARED]), tuple(names[QUERY]), tuple(names[SOURCE]))
    return Stages(shared, query, source, without_dead_values(core.program(outputs)), given)


@lru_cache(maxsize=256)
def distribute(program: Program) -> Program:
    """The same function, linear maps applied to each part of their argument."""
    writer = _Distributor(program)
    return without_dead_values(writer.b.program([writer.joined(output) for output in program.outputs]))


class _Distributor:
    """Each old value becomes a sum of new ones, by what they depend on; they are joined when a map is not linear."""

    def __init__(self, program: Program) -> None:
        self.b, self.old = Builder(), program
        self.parts: list[dict[int, int]] = []
        # Whether a sum over elements has been applied to the parts, and their sum is cheaper than the whole.
        self.contracted: list[bool] = []
        self._joined: dict[int, int] = {}
        for number, value in enumerate(program.values):
            found = self._parts(value)
            self.parts.append(found)
            contracted = value.op in ("linear", "sum") or any(self.contracted[arg] for arg in value.args)
            self.contracted.append(len(found) > 1 and contracted)
            if len(found) > 1 and value.size <= NARROW:
                whole = self.joined(number)
                self.parts[number] = {self.b.side(whole): whole}

    def joined(self, number: int) -> int:
        """The whole value: as it was written, or (shared + query), source and pair parts added in this order."""
        if number not in self._joined and not self.contracted[number] and len(self.parts[number]) > 1:
            self._joined[number] = self._plain(self.old.values[number])
        if number not in self._joined:
            parts = dict(self.parts[number])
            for side in (QUERY, SOURCE, PAIR):
                if side in parts and SHARED in parts:
                    parts[side] = self.b.add(parts[side], parts.pop(SHARED))
            whole, *rest = [parts[side] for side in (SHARED, QUERY, SOURCE, PAIR) if side in parts]
            for part in rest:
                whole = self.b.add(whole, part)
            self._joined[number] = self.b.expand(whole, self.old.values[number].shape)
        return self._joined[number]

    def _plain(self, value: Value) -> int:
        """The value as it was written."""
        return self._apply(value, [self.joined(arg) for arg in value.args])

    def _apply(self, value: Value, args: list[int]) -> int:
        """The primitive on new arguments, whose shapes may be smaller than the old ones but broadcast alike."""
        b = self.b
        if value.op in ("neg", "add", "sub", "mul", "div"):
            return b.elementwise(value.op, *args)
        if value.op == "reshape":
            return b.reshape(args[0], value.shape)
        if value.op == "expand":
            return b.expand(args[0], value.shape)
        if value.op == "linear":
            return b.linear(*args)
        return b.emit(value.op, tuple(args), value.shape, value.attrs)

    def _parts(self, value: Value) -> dict[int, int]:
        if value.op in ("input", "constant"):
            made = self.b.emit(value.op, (), value.shape, value.attrs)
            return {self.b.side(made): made}
        if value.op in ("add", "sub"):
            return self._sum(value)
        if value.op == "linear" and self._concatenation(value.args[0]) is not None:
            return self._linear_of_cat(value)
        if value.op in _LINEAR:
            split = self._split_argument(value)
            if split is not None:
                return self._mapped(value, split)
        whole = self._plain(value)
        return {self.b.side(whole): whole}

    def _split_argument(self, value: Value) -> int | None:
        """The place of the argument in several parts in which the value is linear, the others being shared."""
        several = [place for place, arg in enumerate(value.args) if len(self.parts[arg]) > 1]
        if len(several) != 1 or (value.op == "div" and several[0] == 1) or (value.op == "linear" and several[0] == 1):
            return None
        others = (arg for place, arg in enumerate(value.args) if place != several[0])
        if any(set(self.parts[arg]) != {SHARED} for arg in others):
            return None
        return several[0]

    def _mapped(self, value: Value, place: int) -> dict[int, int]:
        found: dict[int, int] = {}
        for part in self.parts[value.args[place]].values():
            args = [self.joined(arg) if i != place else self._full(part, arg) for i, arg in enumerate(value.args)]
            self._put(found, self._apply(value, args))
        return found

    def _full(self, part: int, old: int) -> int:
        return self.b.expand(part, self.old.values[old].shape)

    def _put(self, parts: dict[int, int], made: int) -> None:
        side = self.b.side(made)
        parts[side] = made if side not in parts else self.b.add(parts[side], made)

    def _sum(self, value: Value) -> dict[int, int]:
        found: dict[int, int] = {}
        one, other = value.args
        for part in self.parts[one].values():
            self._put(found, part)
        for part in self.parts[other].values():
            if value.op == "add":
                self._put(found, part)
            elif self.b.side(part) in found:
                side = self.b.side(part)
                found[side] = self.b.sub(found[side], part)
            else:
                self._put(found, self.b.neg(part))
        return found

    def _concatenation(self, number: int) -> Value | None:
        """The concatenation along the last axis that a value is, perhaps with leading axes of size 1 added."""
        value = self.old.values[number]
        while value.op == "reshape" and value.shape[-1:] == self.old.values[value.args[0]].shape[-1:]:
            if value.size != value.shape[-1]:
                return None
            value = self.old.values[value.args[0]]
        return value if value.op == "cat" and value.attrs[0] == len(value.shape) - 1 else None

    def _linear_of_cat(self, value: Value) -> dict[int, int]:
        """W·[a, b, …] = W_a·a + W_b·b + …"""
        cat = self._concatenation(value.args[0])
        assert cat is not None
        weight = self.joined(value.args[1])
        found: dict[int, int] = {}
        start = 0
        for arg in cat.args:
            width = self.old.values[arg].shape[-1]
            matrix = self.b.slice(weight, 1, start, start + width)
            start += width
            pieces = list(self.parts[arg].values()) if width > NARROW else [self.joined(arg)]
            for piece in pieces:
                wide = self.b.expand(piece, self.old.values[arg].shape)
                made = self.b.linear(wide, matrix)
                self._put(found, self.b.reshape(made, value.shape))
        return found
