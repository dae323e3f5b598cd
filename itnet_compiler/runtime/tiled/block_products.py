"""Products of queries and sources head by head, found in a pair program: in a block of pairs they are matrix products.

⟨q_i, k_j⟩ in each head is the sum of a product of two inputs of shape (heads, width). A block of pairs has room for one
axis; the two matrices of each head need none, and neither do the gradients Σ_j c_ij·k_j and Σ_i c_ij·q_i.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from ...ir.pair.program import PAIR, QUERY, SOURCE, Program

__all__ = ["NARROW", "Heads", "Products", "products"]

# One product of so many elements is as well computed element by element.
NARROW = 4


@dataclass(frozen=True)
class Heads:
    """A value that is made head by head.

    Attributes:
        left: Input of the query; of a gradient, the value that holds a number a head for each pair.
        right: Input of the source; of a gradient, the input of either side.
        heads: How many there are.
        width: Elements of a head.
    """

    left: int
    right: int
    heads: int
    width: int


@dataclass(frozen=True)
class Products:
    """What ``products`` finds.

    Attributes:
        made: Sum of a product → its factors.
        pulled: Output that is the gradient of a factor for one pair → cotangent and the other factor.
        hidden: Values that are part of these only, for which no code is written.
    """

    made: dict[int, Heads]
    pulled: dict[int, Heads]
    hidden: frozenset[int]


@lru_cache(maxsize=256)
def products(program: Program) -> Products:
    """The products head by head of a program."""
    made: dict[int, Heads] = {}
    pulled: dict[int, Heads] = {}
    whole: set[int] = set()
    for number, value in enumerate(program.values):
        if value.op == "sum":
            found = _product(program, value.args[0], value.attrs[0])
            if found is not None:
                made[number] = found
                whole.add(value.args[0])
        elif value.op == "mul" and number in program.outputs and not program.uses[number]:
            found = _gradient(program, number)
            if found is not None:
                pulled[number] = found
                whole.add(number)
    return Products(made, pulled, frozenset(_hidden(program, whole)))


def _product(program: Program, number: int, axes: object) -> Heads | None:
    value = program.values[number]
    alone = len(program.uses[number]) == 1 and number not in program.outputs
    if value.op != "mul" or not alone or axes != (len(value.shape) - 1,):
        return None
    factors = {program.sides[arg]: arg for arg in value.args if _is_input(program, arg, value.shape)}
    width = value.shape[-1]
    if set(factors) != {QUERY, SOURCE} or value.size <= NARROW:
        return None
    return Heads(factors[QUERY], factors[SOURCE], value.size // width, width)


def _gradient(program: Program, number: int) -> Heads | None:
    """An input times a number of each head, broadcast over its width."""
    value = program.values[number]
    for one, other in (value.args, value.args[::-1]):
        wide = program.values[one]
        if not _is_input(program, other, value.shape) or wide.op != "expand" or not value.shape:
            continue
        (source,) = wide.args
        if program.values[source].shape != (*value.shape[:-1], 1) or program.sides[source] != PAIR:
            continue
        while program.values[source].op == "reshape":
            (source,) = program.values[source].args
        return Heads(source, other, math.prod(value.shape[:-1]), value.shape[-1])
    return None


def _is_input(program: Program, number: int, shape: tuple[int, ...]) -> bool:
    """Whether a value is an input of one side in full."""
    value = program.values[number]
    return value.op == "input" and program.sides[number] in (QUERY, SOURCE) and value.shape == shape


def _hidden(program: Program, whole: set[int]) -> set[int]:
    """The products, and what is used by them alone."""
    found = set(whole)
    for number in range(len(program.values) - 1, -1, -1):
        value, uses = program.values[number], program.uses[number]
        part = value.op == "expand" or (value.op == "input" and program.sides[number] in (QUERY, SOURCE))
        if part and uses and number not in program.outputs and found.issuperset(uses):
            found.add(number)
    return found
