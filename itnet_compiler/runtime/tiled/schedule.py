"""Orders a pair program into loops: elementwise values of one shape share a loop, after a product if they can."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir.pair.adjoint import SEED
from ...ir.pair.primitives import ELEMENTWISE
from ...ir.pair.program import Program, Shape

__all__ = ["Loop", "Schedule", "schedule"]


@dataclass
class Loop:
    """One loop over the elements of ``shape``.

    Attributes:
        shape: Of the values that it makes.
        head: A product, reduction or change of shape that is made first, or None.
        chain: Elementwise values, in order.
    """

    shape: Shape
    head: int | None = None
    chain: list[int] = field(default_factory=list)

    @property
    def values(self) -> list[int]:
        """All values that it makes."""
        return ([] if self.head is None else [self.head]) + self.chain


@dataclass(frozen=True)
class Schedule:
    """Loops in order.

    Attributes:
        before: Loops that need no cotangent.
        after: Loops that do.
        stored: Values that are kept in memory, since another loop or the caller reads them.
        same: For each value the value whose elements it has, in the same order (a reshape has its argument's).
    """

    before: tuple[Loop, ...]
    after: tuple[Loop, ...]
    stored: frozenset[int]
    same: tuple[int, ...]


def schedule(program: Program) -> Schedule:
    """Loops for a program all of whose values but inputs and constants are made for each pair."""
    same: list[int] = []
    late: list[bool] = []
    for number, value in enumerate(program.values):
        same.append(same[value.args[0]] if value.op == "reshape" else number)
        late.append(value.attrs[:1] == (SEED,) or any(late[arg] for arg in value.args))
    loops: tuple[list[Loop], list[Loop]] = ([], [])
    places: dict[int, tuple[int, int]] = {}
    for number, value in enumerate(program.values):
        if value.op in ("input", "constant", "reshape"):
            continue
        phase = int(late[number])
        group = loops[phase]
        args = [places.get(same[arg], (-1, -1)) for arg in value.args]
        first = max((place for at, place in args if at == phase), default=0)
        if value.op in ELEMENTWISE:
            place = next((i for i in range(len(group) - 1, first - 1, -1) if group[i].shape == value.shape), None)
            if place is None:
                group.append(Loop(value.shape))
                place = len(group) - 1
            group[place].chain.append(number)
        else:
            group.append(Loop(value.shape, number))
            place = len(group) - 1
        places[number] = phase, place
    stored = {same[output] for output in program.outputs}
    for number, value in enumerate(program.values):
        for arg in value.args:
            whole = number in places and (value.op not in ELEMENTWISE or program.values[arg].shape != value.shape)
            if same[arg] in places and number in places and (whole or places[same[arg]] != places[number]):
                stored.add(same[arg])
    return Schedule(tuple(loops[0]), tuple(loops[1]), frozenset(stored & set(places)), tuple(same))
