"""Programs over one pair of positions: straight-line code of a few primitives, with a text form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

__all__ = ["PAIR", "QUERY", "SHARED", "SIDES", "SOURCE", "Input", "Program", "Shape", "Value", "without_dead_values"]

Shape = tuple[int, ...]

# What a value depends on, as bits: nothing but parameters, the query, the source, or both.
SHARED, QUERY, SOURCE, PAIR = 0, 1, 2, 3
SIDES = ("shared", "query", "source", "pair")


@dataclass(frozen=True)
class Value:
    """One value: what makes it, and the shape that it has for one pair.

    Attributes:
        op: Name of a primitive (``ir.pair.primitives``), ``input`` or ``constant``.
        args: Numbers of the values that it is made from.
        shape: For one pair; ``()`` is a number.
        attrs: Static attributes: axes, bounds, a number, for an input its name and side.
    """

    op: str
    args: tuple[int, ...]
    shape: Shape
    attrs: tuple[object, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements for one pair."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Input:
    """An input of a program: its number, name, side (``SHARED``, ``QUERY``, ``SOURCE`` or ``PAIR``) and shape."""

    number: int
    name: str
    side: int
    shape: Shape


@dataclass(frozen=True)
class Program:
    """Values in order of evaluation, and which of them are returned. Hashable; ``str`` and ``parse`` are inverse."""

    values: tuple[Value, ...]
    outputs: tuple[int, ...]

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The inputs, in order."""
        found = []
        for number, value in enumerate(self.values):
            if value.op == "input":
                name, side = value.attrs
                assert isinstance(name, str)
                assert isinstance(side, int)
                found.append(Input(number, name, side, value.shape))
        return tuple(found)

    @cached_property
    def sides(self) -> tuple[int, ...]:
        """What each value depends on."""
        found: list[int] = []
        for value in self.values:
            side = int(value.attrs[1]) if value.op == "input" else SHARED  # type: ignore[call-overload]
            for arg in value.args:
                side |= found[arg]
            found.append(side)
        return tuple(found)

    @cached_property
    def uses(self) -> tuple[tuple[int, ...], ...]:
        """The values made from each value."""
        found: list[list[int]] = [[] for _ in self.values]
        for number, value in enumerate(self.values):
            for arg in dict.fromkeys(value.args):
                found[arg].append(number)
        return tuple(map(tuple, found))

    @cached_property
    def dying(self) -> tuple[tuple[int, ...], ...]:
        """The values that nothing needs once each value is made."""
        last = {arg: number for number, value in enumerate(self.values) for arg in value.args}
        found: list[list[int]] = [[] for _ in self.values]
        for arg, number in last.items():
            if arg not in self.outputs:
                found[number].append(arg)
        return tuple(map(tuple, found))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.values, self.outputs))

    def __str__(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        lines = []
        for number, value in enumerate(self.values):
            words = [f"%{number}", json.dumps(value.shape, separators=(",", ":")), value.op]
            words += [f"%{arg}" for arg in value.args]
            if value.attrs:
                words.append(json.dumps(value.attrs, separators=(",", ":")))
            lines.append(" ".join(words))
        lines.append(" ".join(["return", *(f"%{output}" for output in self.outputs)]))
        return "\n".join(lines)

    @staticmethod
    @lru_cache(maxsize=256)
    def parse(text: str) -> Program:
        """The program that prints as ``text``."""
        *lines, last = text.strip().splitlines()
        values = []
        for line in lines:
            _, shape, op, *rest = line.split(" ")
            args = tuple(int(word[1:]) for word in rest if word.startswith("%"))
            attrs = [word for word in rest if not word.startswith("%")]
            values.append(Value(op, args, _tuples(json.loads(shape)), _tuples(json.loads(attrs[0])) if attrs else ()))
        return Program(tuple(values), tuple(int(word[1:]) for word in last.split(" ")[1:]))

    def describe(self) -> str:
        """The text for readers: sides in words, shapes behind a colon."""
        lines = []
        for number, (value, side) in enumerate(zip(self.values, self.sides, strict=True)):
            if value.op == "input":
                what = str(value.attrs[0])
            elif value.op == "constant":
                what = f"{value.attrs[0]}"
            else:
                attrs = [str(attr).replace(" ", "") for attr in value.attrs]
                what = f"{value.op}({', '.join([*(f'%{arg}' for arg in value.args), *attrs])})"
            shape = ",".join(map(str, value.shape))
            lines.append(f"%{number}: {SIDES[side]}[{shape}] = {what}")
        return "\n".join([*lines, f"return {', '.join(f'%{output}' for output in self.outputs)}"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def without_dead_values(program: Program, keep: Iterable[int] = ()) -> Program:
    """The same program without the values that no output and none of ``keep`` needs; inputs among them go too."""
    live = set(program.outputs) | set(keep)
    for number in range(len(program.values) - 1, -1, -1):
        if number in live:
            live.update(program.values[number].args)
    order = sorted(live)
    new = {old: place for place, old in enumerate(order)}
    values = []
    for old in order:
        value = program.values[old]
        values.append(Value(value.op, tuple(new[arg] for arg in value.args), value.shape, value.attrs))
    return Program(tuple(values), tuple(new[output] for output in program.outputs))
