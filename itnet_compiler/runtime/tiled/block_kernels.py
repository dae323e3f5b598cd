"""The kernels of the tiled integral in Triton, as source text: forward, backward of the queries, of the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...ir.pair.adjoint import SEED
from ...ir.pair.program import QUERY, SHARED, SOURCE, Program
from .block_code import SMALL, BlockCode, padded

__all__ = ["PRELUDE", "Kind", "Reverse", "backward_text", "forward_text", "shared_room"]

PRELUDE = '''"""Generated: a tiled integral of one pair program."""

import triton
import triton.language as tl


@triton.jit
def normal(x):
    return 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)


@triton.jit
def gelu(x):
    return x * normal(x)


@triton.jit
def gelu_grad(x):
    return normal(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def bent(x):
    return tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))


@triton.jit
def gelu_tanh(x):
    return x * bent(x)


@triton.jit
def gelu_tanh_grad(x):
    s = bent(x)
    return s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)


@triton.jit
def tanh(x):
    square = x * x
    near = x + x * square * (-0.33333333 + square * (0.13333333 - square * 0.053968254))
    return tl.where(tl.abs(x) < 0.1, near, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


'''

_POINTERS = "query, source, shared, value, mask"
_SIZES = "queries, sources, before, after, mask_batch, mask_row, order"
_CONSTANTS = "BQ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr"


@dataclass(frozen=True)
class Kind:
    """What a kernel is written for: heads H, width V, and what ``Problem`` says of the weights."""

    heads: int
    width: int
    normalise: bool
    masked: bool
    half: bool


@dataclass(frozen=True)
class Reverse:
    """A reverse program (all of its values of pairs) and where its outputs go.

    Attributes:
        program: Outputs: the forward output, cotangents, factors of products.
        rows: (place among the outputs, offset) of the gradients of the side that the kernel goes through.
        shared: The same, of shared inputs.
        products: (place of the left factor, offset); the right one is next.
    """

    program: Program
    rows: tuple[tuple[int, int], ...]
    shared: tuple[tuple[int, int], ...] = ()
    products: tuple[tuple[int, int], ...] = ()


def _indent(lines: Sequence[str], depth: int) -> str:
    return "".join("    " * depth + line + "\n" for line in lines)


def _positions(row: str, size: str, block: str, start: str) -> list[str]:
    return [
        f"{row} = {start} + tl.arange(0, {block})",
        f"{row}_in = {row} < {size}",
        f"{row}_row = batch * {size} + {row}",
    ]


def _allowed(kind: Kind) -> list[str]:
    lines = [
        "allowed = i_in[:, None] & j_in[None, :]",
        "allowed &= (before < 0) | (j[None, :] >= i[:, None] - before)",
        "allowed &= (after < 0) | (j[None, :] <= i[:, None] + after)",
    ]
    if kind.masked:
        place = "mask + batch * mask_batch + i[:, None].to(tl.int64) * mask_row + j[None, :]"
        lines.append(f"allowed &= tl.load({place}, mask=i_in[:, None] & j_in[None, :], other=0) != 0")
    return lines


def _sources_of_queries() -> list[str]:
    """The tiles of sources that a block of queries may see."""
    return [
        "low = tl.where(before < 0, 0, tl.maximum(first - before, 0)) // BK * BK",
        "high = tl.where(after < 0, sources, tl.minimum(sources, first + BQ + after))",
    ]


def _queries_of_sources() -> list[str]:
    """The tiles of queries that may see a block of sources."""
    return [
        "low = tl.where(after < 0, 0, tl.maximum(first - after, 0)) // BQ * BQ",
        "high = tl.where(before < 0, queries, tl.minimum(queries, first + BK + before))",
    ]


def _of_head(code: BlockCode, head: int) -> str:
    """The program's number for a head: [queries, sources]."""
    return code.number_of_head(code.program.outputs[0], head)


def _channel(kind: Kind, pointer: str, row: str, head: int) -> tuple[str, str]:
    """(address, mask) of a head's channels of a block of rows: [rows, V]."""
    v = max(16, padded(kind.width))
    base = f"{pointer} + ({row}_row * {kind.heads * kind.width} + {head * kind.width})[:, None]"
    return f"{base} + tl.arange(0, {v})[None, :]", f"{row}_in[:, None] & (tl.arange(0, {v}) < {kind.width})[None, :]"


def _load(kind: Kind, pointer: str, row: str, head: int) -> str:
    address, inside = _channel(kind, pointer, row, head)
    return f"tl.load({address}, mask={inside}, other=0.0)"


def _dot(code: BlockCode, left: str, right: str) -> str:
    return f"tl.dot({code._factor(left)}, {code._factor(right)}, input_precision=PRECISION)"


def forward_text(program: Program, kind: Kind) -> str:
    """``forward``: a program a block of queries and a sample, online softmax over the tiles of sources."""
    code = BlockCode(program, kind.half)
    v = max(16, padded(kind.width))
    heads = range(kind.heads)
    start = ["batch = tl.program_id(1).to(tl.int64)", "first = tl.program_id(0) * BQ"]
    start += [*_positions("i", "queries", "BQ", "first"), *code.loads(QUERY), *code.loads(SHARED)]
    for head in heads:
        start.append(f"sum{head} = tl.zeros([BQ, {v}], tl.float32)")
        if kind.normalise:
            start += [
                f'peak{head} = tl.full([BQ], float("-inf"), tl.float32)',
                f"total{head} = tl.zeros([BQ], tl.float32)",
            ]
    body = [*_positions("j", "sources", "BK", "start"), *code.loads(SOURCE), *code.lines(range(len(program.values)))]
    body += _allowed(kind)
    for head in heads:
        if kind.normalise:
            body += [
                f'score = tl.where(allowed, {_of_head(code, head)}, float("-inf"))',
                f"higher = tl.maximum(peak{head}, tl.max(score, 1))",
                'level = tl.where(higher == float("-inf"), 0.0, higher)',
                "weight_ = tl.exp(score - level[:, None])",
                f"decay = tl.exp(peak{head} - level)",
                f"total{head} = total{head} * decay + tl.sum(weight_, 1)",
                f"sum{head} = sum{head} * decay[:, None]",
                f"peak{head} = higher",
            ]
        else:
            body.append(f"weight_ = tl.where(allowed, {_of_head(code, head)}, 0.0)")
        body.append(f"sum{head} += {_dot(code, 'weight_', _load(kind, 'value', 'j', head))}")
    end = []
    for head in heads:
        address, inside = _channel(kind, "output", "i", head)
        if kind.normalise:
            end.append(f"scale = tl.where(total{head} == 0.0, 0.0, 1.0 / total{head})")
            level = f'tl.where(total{head} == 0.0, float("-inf"), peak{head} + tl.log(total{head}))'
            end.append(f"tl.store(normaliser + i_row * {kind.heads} + {head}, {level}, mask=i_in)")
            end.append(f"sum{head} = sum{head} * scale[:, None]")
        end.append(f"tl.store({address}, sum{head}, mask={inside})")
    text = f"@triton.jit\ndef forward({_POINTERS}, output, normaliser, {_SIZES}, {_CONSTANTS}):\n"
    text += _indent([*start, *_sources_of_queries()], 1)
    return text + "    for start in range(low, high, BK):\n" + _indent(body, 2) + _indent(end, 1)


def shared_room(reverse: Reverse) -> int:
    """Elements of the shared gradient of one program."""
    values, outputs = reverse.program.values, reverse.program.outputs
    ends = [offset + values[outputs[place]].size for place, offset in reverse.shared]
    for place, offset in reverse.products:
        left, right = (values[outputs[place + i]].shape[-1] for i in (0, 1))
        ends.append(offset + left * right)
    return max(ends, default=0)


def backward_text(reverse: Reverse, kind: Kind, side: int) -> str:
    """``backward_query`` or ``backward_source``: a program a block of one side, over the tiles of the other."""
    code = BlockCode(reverse.program, kind.half)
    mine, other = ("i", "j") if side == QUERY else ("j", "i")
    sizes = {"i": ("queries", "BQ"), "j": ("sources", "BK")}
    start = ["batch = tl.program_id(1).to(tl.int64)", f"first = tl.program_id(0) * {sizes[mine][1]}"]
    start += [*_positions(mine, *sizes[mine], "first"), *code.loads(side), *code.loads(SHARED)]
    body = [*_positions(other, *sizes[other], "start"), *code.loads(SOURCE if side == QUERY else QUERY)]
    forward, after = _phases(reverse.program)
    body += [*code.lines(forward), *_allowed(kind), *_seeds(code, kind, side), *code.lines(after)]
    end: list[str] = []
    if side == SOURCE:
        v = max(16, padded(kind.width))
        for head in range(kind.heads):
            start.append(f"value_{head} = tl.zeros([BK, {v}], tl.float32)")
            address, inside = _channel(kind, "grad_value", "j", head)
            end.append(f"tl.store({address}, value_{head}, mask={inside})")
    width = sum(reverse.program.values[reverse.program.outputs[place]].size for place, _ in reverse.rows)
    for place, offset in reverse.rows:
        _row_gradient(code, reverse.program.outputs[place], (mine, offset, width), (start, body, end))
    room = shared_room(reverse)
    if room:
        end.append(f"part = grad_shared + (batch * tl.num_programs(0) + tl.program_id(0)) * {room}")
    for place, offset in reverse.shared:
        _shared_gradient(code, reverse.program.outputs[place], offset, (start, body, end))
    for place, offset in reverse.products:
        left, right = reverse.program.outputs[place : place + 2]
        _product(code, left, right, offset, (start, body, end))
    name, loop = ("query", _sources_of_queries()) if side == QUERY else ("source", _queries_of_sources())
    pointers = f"{_POINTERS}, grad, normaliser, slope, grad_rows, {'grad_shared' if side == QUERY else 'grad_value'}"
    text = f"@triton.jit\ndef backward_{name}({pointers}, {_SIZES}, {_CONSTANTS}):\n" + _indent([*start, *loop], 1)
    return text + f"    for start in range(low, high, {sizes[other][1]}):\n" + _indent(body, 2) + _indent(end, 1)


def _phases(program: Program) -> tuple[list[int], list[int]]:
    """Values that need no cotangent, and those that do."""
    late: list[bool] = []
    for value in program.values:
        late.append(value.attrs[:1] == (SEED,) or any(late[arg] for arg in value.args))
    numbers = range(len(program.values))
    return [n for n in numbers if not late[n]], [n for n in numbers if late[n]]


def _seeds(code: BlockCode, kind: Kind, side: int) -> list[str]:
    """Cotangent of the program's output, and the gradient of the values where the sources are gone through."""
    seed = next((item.number for item in code.program.inputs if item.name == SEED), None)
    alone = seed is not None and not code.has_axis(seed)
    lines = []
    if seed is not None:
        tail = "" if alone else f", {padded(code.size(seed))}"
        lines.append(f"x{seed} = tl.zeros([BQ, BK{tail}], tl.float32)")
    for head in range(kind.heads):
        lines.append(f"pull = {_load(kind, 'grad', 'i', head)}")
        value = f"tl.trans({_load(kind, 'value', 'j', head)})"
        lines.append(f"raw = {_dot(code, 'pull', value)}")
        number = _of_head(code, head)
        if kind.normalise:
            for name in ("normaliser", "slope"):
                lines.append(
                    f"{name}_ = tl.load({name} + i_row * {kind.heads} + {head}, mask=i_in, other=0.0)[:, None]"
                )
            lines.append(f"weight_ = tl.where(allowed, tl.exp({number} - normaliser_), 0.0)")
            lines.append("cotangent = weight_ * (raw - slope_)")
        else:
            lines.append(f"weight_ = tl.where(allowed, {number}, 0.0)")
            lines.append("cotangent = tl.where(allowed, raw, 0.0)")
        if side == SOURCE:
            lines.append(f"value_{head} += {_dot(code, 'tl.trans(weight_)', 'pull')}")
        if alone:
            lines.append(f"x{seed} += cotangent")
        elif seed is not None:
            place = f"(tl.arange(0, {padded(code.size(seed))}) == {head})[None, None, :]"
            lines.append(f"x{seed} = tl.where({place}, cotangent[:, :, None], x{seed})")
    return lines


Parts = tuple[list[str], list[str], list[str]]


def _row_gradient(code: BlockCode, number: int, where: tuple[str, int, int], parts: Parts) -> None:
    (mine, offset, width), (start, body, end) = where, parts
    block, axis = ("BQ", 1) if mine == "i" else ("BK", 0)
    size, name = code.size(number), f"row_{offset}"
    base = f"grad_rows + {mine}_row * {width} + {offset}"
    if number in code.products.pulled:
        _head_gradients(code, number, (mine, offset, width), parts)
        return
    if size == 1:
        start.append(f"{name} = tl.zeros([{block}], tl.float32)")
        body.append(f"{name} += tl.sum(x{number} + tl.zeros([BQ, BK], tl.float32), {axis})")
        end.append(f"tl.store({base}, {name}, mask={mine}_in)")
        return
    n = padded(size)
    start.append(f"{name} = tl.zeros([{block}, {n}], tl.float32)")
    body.append(f"{name} += tl.sum(x{number} + tl.zeros([BQ, BK, 1], tl.float32), {axis})")
    inside = f"{mine}_in[:, None] & (tl.arange(0, {n}) < {size})[None, :]"
    end.append(f"tl.store(({base})[:, None] + tl.arange(0, {n})[None, :], {name}, mask={inside})")


def _head_gradients(code: BlockCode, number: int, where: tuple[str, int, int], parts: Parts) -> None:
    """Σ c·b over the other side, head by head, for a number c of the pair and an input b of the other side."""
    (mine, offset, width), (start, body, end) = where, parts
    found, block = code.products.pulled[number], "BQ" if mine == "i" else "BK"
    n = max(16, padded(found.width))
    for place in range(found.heads):
        name, first = f"row_{offset}_{place}", offset + place * found.width
        cotangent = code.number_of_head(found.left, place)
        left = f"({cotangent})" if mine == "i" else f"tl.trans({cotangent})"
        start.append(f"{name} = tl.zeros([{block}, {n}], tl.float32)")
        body.append(f"{name} += {code.head_dot(left, code.head(found.right, place, found.width))}")
        base = f"grad_rows + ({mine}_row * {width} + {first})[:, None] + tl.arange(0, {n})[None, :]"
        inside = f"{mine}_in[:, None] & (tl.arange(0, {n}) < {found.width})[None, :]"
        end.append(f"tl.store({base}, {name}, mask={inside})")


def _shared_gradient(code: BlockCode, number: int, offset: int, parts: Parts) -> None:
    start, body, end = parts
    size, name = code.size(number), f"shared_{offset}"
    n = padded(size)
    if size == 1:
        start.append(f"{name} = 0.0")
        body.append(f"{name} += tl.sum(tl.sum(x{number} + tl.zeros([BQ, BK], tl.float32), 1), 0)")
        end.append(f"tl.store(part + {offset}, {name})")
        return
    start.append(f"{name} = tl.zeros([{n}], tl.float32)")
    body.append(f"{name} += tl.sum(tl.sum(x{number} + tl.zeros([BQ, BK, 1], tl.float32), 1), 0)")
    end.append(f"tl.store(part + {offset} + tl.arange(0, {n}), {name}, mask=tl.arange(0, {n}) < {size})")


def _product(code: BlockCode, left: int, right: int, offset: int, parts: Parts) -> None:
    """The gradient of a matrix: left ⊗ right summed over all pairs."""
    start, body, end = parts
    m, n = code.size(left), code.size(right)
    name = f"matrix_{offset}"
    if min(m, n) > SMALL:
        pm, pn = padded(m), padded(n)
        start.append(f"{name} = tl.zeros([BQ, {pm}, {pn}], tl.float32)")  # one product a query: short sums
        factors = f"tl.permute({code.block(left)}, (0, 2, 1)), {code.block(right)}"
        body.append(f"{name} += tl.dot({factors}, input_precision=PRECISION)")
        rows, columns = f"tl.arange(0, {pm})[:, None]", f"tl.arange(0, {pn})[None, :]"
        inside = f"({rows} < {m}) & ({columns} < {n})"
        end.append(f"tl.store(part + {offset} + {rows} * {n} + {columns}, tl.sum({name}, 0), mask={inside})")
        return
    small, large, few, many = (left, right, m, n) if m <= n else (right, left, n, m)
    for place in range(few):
        one = code.element(small, str(place)) if few > 1 else f"x{small} + tl.zeros([BQ, BK], tl.float32)"
        line = f"{name}_{place}"
        step, stride = (place * n, 1) if m <= n else (place, n)
        if many == 1:
            start.append(f"{line} = 0.0")
            body.append(f"{line} += tl.sum(tl.sum(({one}) * x{large}, 1), 0)")
            end.append(f"tl.store(part + {offset + step}, {line})")
            continue
        p = padded(many)
        start.append(f"{line} = tl.zeros([{p}], tl.float32)")
        body.append(f"{line} += tl.sum(tl.sum(({one})[:, :, None] * x{large}, 1), 0)")
        address = f"part + {offset + step} + tl.arange(0, {p}) * {stride}"
        end.append(f"tl.store({address}, {line}, mask=tl.arange(0, {p}) < {many})")
