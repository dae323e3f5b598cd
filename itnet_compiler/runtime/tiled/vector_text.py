"""The loops of the CPU's kernels in words that can be read: what ``vector_code`` writes as LLVM code."""

from __future__ import annotations

import math

from ...ir.pair.program import SIDES, Program
from .schedule import Loop, Schedule, schedule
from .vector_backward import ROWS, Targets
from .vector_code import GROUPS
from .vector_kernel import Shape

__all__ = ["backward_words", "forward_words"]

# How an input is indexed, by its side.
_AT = {"shared": "", "query": "[i]", "source": "[tile]", "pair": ""}


def forward_words(program: Program, shape: Shape) -> str:
    """The forward kernel: rows are shared among threads."""
    kernel, allowed = _of_head(program), _allowed(shape)
    lines = [_head(shape), "for i in queries:", "    y[h, v] = 0"]
    if shape.normalise:
        lines.append("    peak[h] = -inf; total[h] = 0")
    lines += ["    for tile in the sources that i may see:", *_loops(program, schedule(program).before, 8)]
    lines.append(f"        for h in 0..{shape.heads}:")
    if shape.normalise:
        lines += [
            f"            score = {kernel} where {allowed}, else -inf",
            "            higher = max(peak[h], max(score))",
            "            weight = exp(score - higher); decay = exp(peak[h] - higher)",
            "            total[h] = total[h]*decay + sum(weight); y[h] *= decay; peak[h] = higher",
        ]
    else:
        lines.append(f"            weight = {kernel} where {allowed}, else 0")
    lines.append(f"            for v in 0..{shape.width}: y[h, v] += sum(weight * value[tile, h, v])")
    if shape.normalise:
        lines.append("    y[h] /= total[h]; normaliser[i, h] = peak[h] + log(total[h])")
    return "\n".join(lines) + "\n"


def backward_words(program: Program, shape: Shape, targets: Targets) -> str:
    """The backward kernel: the values of each pair are computed again, then their cotangents."""
    plan, kernel, allowed = schedule(program), _of_head(program), _allowed(shape)
    lines = [_head(shape), f"for rows in blocks of {ROWS} queries:", "    for tile in the sources that they may see:"]
    lines += ["        for i in rows:", *_loops(program, plan.before, 12), f"            for h in 0..{shape.heads}:"]
    lines.append(f"                pull = 0; for v in 0..{shape.width}: pull += grad[i, h, v] * value[tile, h, v]")
    if shape.normalise:
        lines += [
            f"                weight = exp({kernel} - normaliser[i, h]) where {allowed}, else 0",
            "                cotangent[h] = weight * (pull - slope[i, h])",
        ]
    else:
        lines += [
            f"                weight = {kernel} where {allowed}, else 0",
            f"                cotangent[h] = pull where {allowed}, else 0",
        ]
    lines.append(f"                for v in 0..{shape.width}: grad_value[tile, h, v] += weight * grad[i, h, v]")
    lines += _loops(program, plan.after, 12)
    for name, group in (("query[i]", targets.query), ("source[tile]", targets.source), ("shared", targets.shared)):
        lines += [
            f"            grad_{name}[{offset}:] += {_text(program, plan, program.outputs[place])}"
            for place, offset in group
        ]
    for place, offset in targets.products:
        left, right = (_text(program, plan, output) for output in program.outputs[place : place + 2])
        lines.append(f"            grad_shared[{offset}:] += outer({left}, {right})")
    return "\n".join(lines) + "\n"


def _head(shape: Shape) -> str:
    return f"# numbers of a pair are tiles: {GROUPS} vectors of {shape.lanes} neighbouring sources, float32"


def _allowed(shape: Shape) -> str:
    return "the domain and the mask allow" if shape.masked else "the domain allows"


def _of_head(program: Program) -> str:
    """The kernel of head h."""
    output = program.outputs[0]
    return _text(program, schedule(program), output) + ("[h]" if program.values[output].size > 1 else "")


def _loops(program: Program, loops: tuple[Loop, ...], depth: int) -> list[str]:
    """One line for a loop that makes one value, else one for each value below the loop's own."""
    plan, lines = schedule(program), []
    for item in loops:
        values = [_value(program, plan, number) for number in item.values]
        line = " " * depth + f"for c in 0..{math.prod(item.shape)}:"
        if len(values) == 1:
            lines.append(f"{line} {values[0]}")
        else:
            lines += [line, *(" " * (depth + 4) + value for value in values)]
    return lines


def _value(program: Program, plan: Schedule, number: int) -> str:
    value = program.values[number]
    args = [_text(program, plan, arg) for arg in value.args]
    # Only what another loop reads goes to memory.
    name = f"%{number}[c]" if number in plan.stored else f"%{number}"
    if value.op == "linear":
        return f"{name} = sum_k {args[1]}[c, k] * {args[0]}[k]"
    attrs = [str(attr).replace(" ", "") for attr in value.attrs]
    return f"{name} = {value.op}({', '.join([*args, *attrs])})"


def _text(program: Program, plan: Schedule, number: int) -> str:
    """The name of an input, a number, or the value that holds the elements."""
    number = plan.same[number]
    value = program.values[number]
    if value.op == "input":
        return f"{value.attrs[0]}{_AT[SIDES[program.sides[number]]]}"
    return str(value.attrs[0]) if value.op == "constant" else f"%{number}"
