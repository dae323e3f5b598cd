"""The reverse of a step: which program runs it, what that reads, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .pair.adjoint import SEED, adjoint
from .pair.builder import Builder
from .pair.primitives import ELEMENTWISE
from .pair.program import SHARED, Program, without_dead_values

__all__ = ["Reverse", "irregular", "reverse"]


@dataclass(frozen=True)
class Reverse:
    """How a step is differentiated.

    Attributes:
        again: The step; outputs: the carried values after it, then the products with matrices, which are recorded.
        recorded: Widths of those.
        program: The reverse step. Inputs: those of the step, the recorded products, the cotangents of its outputs.
            Outputs: the cotangents of the carried values before the step, then the sinks.
        carried: Input name and output place of the cotangent of each carried value.
        seeds: Input names of the cotangents of what is kept of every step.
        sinks: Widths of what the reverse step gives besides.
        inputs: Input of the step → sink that holds its cotangent.
        products: (matrix, left, right): a part of the matrix's cotangent is Σ left ⊗ right over steps and rows; sides
            are sinks, or inputs of the reverse step by name.
    """

    again: Program
    recorded: tuple[int, ...]
    program: Program
    carried: tuple[tuple[str, int], ...]
    seeds: tuple[str, ...]
    sinks: tuple[int, ...]
    inputs: dict[str, int]
    products: tuple[tuple[str, int | str, int | str], ...]


@lru_cache(maxsize=256)
def reverse(program: Program, carried: int) -> Reverse:
    """The reverse of ``program``, whose first ``carried`` outputs are carried values."""
    linear = [number for number, value in enumerate(program.values) if value.op == "linear"]
    again = without_dead_values(Program(program.values, (*program.outputs[:carried], *linear)))
    found = adjoint(program, recorded=linear)
    outputs = found.program.outputs[len(program.outputs) :]
    cotangents = dict(zip(found.inputs, outputs, strict=False))
    pairs = outputs[len(found.inputs) :]
    builder = Builder.of(found.program)
    names = {item.number: item.name for item in found.program.inputs}
    seeds = [SEED if len(program.outputs) == 1 else f"{SEED}_{place}" for place in range(len(program.outputs))]
    zero = builder.constant(0.0)
    states = [cotangents.pop(f"h{place}", zero) for place in range(carried)]
    sinks: list[int] = []

    def sink(number: int) -> int:
        if number not in sinks:
            sinks.append(number)
        return sinks.index(number)

    def side(number: int) -> int | str:
        """What lies in memory anyhow needs no sink."""
        name = names.get(number)
        return sink(number) if name is None or name in seeds[:carried] else name

    inputs = {name: sink(number) for name, number in cotangents.items()}
    products = tuple(
        (product.matrix, side(pairs[2 * place]), side(pairs[2 * place + 1]))
        for place, product in enumerate(found.products)
    )
    values = builder.values
    return Reverse(
        again,
        tuple(program.values[number].size for number in linear),
        without_dead_values(Program(tuple(values), (*states, *sinks))),
        tuple(zip(seeds[:carried], range(carried), strict=True)),
        tuple(seeds[carried:]),
        tuple(values[number].size for number in sinks),
        inputs,
        products,
    )


# Primitives for which there is no machine code.
_UNVECTORISED = {"log1p", "expm1", "power"}


@lru_cache(maxsize=256)
def irregular(program: Program, carried: int) -> tuple[str, ...]:
    """What in a step, or in its reverse, cannot be run with vectors along the row; nothing if all can."""
    try:
        programs = program, reverse(program, carried).program
    except ValueError as error:
        return (str(error),)
    return tuple(sorted({reason for each in programs for reason in _irregular(each)}))


def _irregular(program: Program) -> set[str]:
    reasons = {f"no vector form of {value.op}" for value in program.values if value.op in _UNVECTORISED}
    for value, side in zip(program.values, program.sides, strict=True):
        sizes = [program.values[arg].size for arg in value.args]
        if value.size == 0:
            reasons.add("a value without entries")
        if side == SHARED and len(value.shape) > 1 and value.op not in ("input", "permute"):
            reasons.add("a matrix that is computed")
        if value.op in ELEMENTWISE:
            if any(size not in (1, value.size) for size in sizes):
                reasons.add("values that are repeated along a row")
        elif value.op in ("sum", "amax"):
            if value.size != 1:
                reasons.add("a sum over a part of a row")
        elif value.op == "permute":
            if side != SHARED:
                reasons.add("a permutation of a row")
        elif value.op in ("slice", "cat", "linear"):
            shapes = [value.shape, *(program.values[arg].shape for arg in value.args[:1])]
            if any(len(shape) != 1 for shape in shapes) or (value.op == "slice" and value.attrs[3] != 1):
                reasons.add(f"a {value.op} along another axis")
        elif value.op == "expand":
            if sizes[0] not in (1, value.size):
                reasons.add("values that are repeated along a row")
        elif value.op not in ("input", "constant", "reshape", "power"):
            reasons.add(f"a {value.op}")
    return reasons
