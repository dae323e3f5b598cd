"""Where the values of a row program lie while its steps run, and in which order they are made."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.pair.primitives import ELEMENTWISE
from ...ir.pair.program import SHARED, Program

__all__ = ["Group", "Place", "Plan", "plan"]

_VIEWS = ("reshape", "expand", "slice")


@dataclass(frozen=True)
class Place:
    """Numbers from ``offset`` on in the room of value ``base``."""

    base: int
    offset: int = 0


@dataclass(frozen=True)
class Group:
    """Values that are made in one loop over ``size`` entries; a single one that is no elementwise operator alone."""

    values: tuple[int, ...]
    size: int
    elementwise: bool


@dataclass(frozen=True)
class Plan:
    """How a program runs.

    Attributes:
        groups: In order.
        places: Where a value lies that has a place.
        stored: Values that have room of their own.
    """

    groups: tuple[Group, ...]
    places: dict[int, Place]
    stored: frozenset[int]


def plan(program: Program) -> Plan:
    """Groups of neighbouring elementwise values, and what has to be kept between them."""
    return _Planner(program).run()


class _Planner:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.places: dict[int, Place] = {}
        self.groups: list[Group] = []
        self.open: list[int] = []
        self.size = 0

    def run(self) -> Plan:
        """All of it."""
        for number, (value, side) in enumerate(zip(self.program.values, self.program.sides, strict=True)):
            if value.op == "constant" or (side == SHARED and len(value.shape) > 1):
                continue  # matrices are read by products alone, in an order of their own
            if value.op == "input":
                self.places[number] = Place(number)
            elif value.op in ELEMENTWISE:
                if self.open and value.size != self.size:
                    self._close()
                self.size = value.size
                self.open.append(number)
            else:
                self._other(number)
        self._close()
        stored = {place.base for place in self.places.values()}
        return Plan(tuple(self.groups), self.places, frozenset(stored))

    def _other(self, number: int) -> None:
        value = self.program.values[number]
        if any(self._base(arg) in self.open for arg in value.args):
            self._close()
        arg = value.args[0]
        if value.op in _VIEWS and arg in self.places and self._is_view(number):
            first = self.places[arg]
            start = int(value.attrs[1]) if value.op == "slice" else 0  # type: ignore[call-overload]
            self.places[number] = Place(first.base, first.offset + start)
            return
        self.groups.append(Group((number,), value.size, False))
        self.places[number] = Place(number)

    def _is_view(self, number: int) -> bool:
        """A value of one entry lies in all lanes of a vector, so it is no view of a longer one, nor the reverse."""
        value = self.program.values[number]
        return (value.size == 1) == (self.program.values[value.args[0]].size == 1)

    def _base(self, number: int) -> int:
        return self.places[number].base if number in self.places else number

    def _close(self) -> None:
        if not self.open:
            return
        members = set(self.open)
        self.groups.append(Group(tuple(self.open), self.size, True))
        for number in self.open:
            if number in self.program.outputs or set(self.program.uses[number]) - members:
                self.places[number] = Place(number)
        self.open = []
