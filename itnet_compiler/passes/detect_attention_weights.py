"""Rule ``attention_written_out``: product, softmax, product, as ``F.multi_head_attention_forward`` writes it.

The grammar, with q of (…, L, D), k of (…, S, D) and v of (…, S, V), any leading axes:

    scores  = matmul(q, kᵀ) | bmm(q, kᵀ) | baddbmm(mask, q, kᵀ)      kᵀ swaps the last two axes of k, no others
    scores  = scores · number | scores / number                        at most one of them, optional
    scores  = scores + mask                                            optional, without a baddbmm
    weights = dropout(softmax(scores, -1))                             dropout optional
    y       = matmul(weights, v) | bmm(weights, v)

The weights may have other users; they become the second output. Any other intermediate may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq

from ..ir.domain import Keys
from ..ir.kernel import Spec
from ..ir.softmax import Softmax
from .match import Match, Proposal, bind, op_name, present, propose, rank, rule, shape_of, value_of

__all__ = ["attention_written_out"]

_MATMUL, _BMM, _BADDBMM = "aten.matmul.default", "aten.bmm.default", "aten.baddbmm.default"
_MUL, _DIV, _ADD, _DROPOUT = "aten.mul.Tensor", "aten.div.Tensor", "aten.add.Tensor", "aten.dropout.default"
_TRANSPOSE, _PERMUTE = "aten.transpose.int", "aten.permute.default"
_SWAPS = (_TRANSPOSE, _PERMUTE, "aten.mT.default", "aten.t.default")


@dataclass
class _Scores:
    """The scores, followed back to the product that they come from.

    Attributes:
        product: The product node.
        scale: Number they are multiplied by.
        divisor: Number they are divided by.
        mask: What is added, or None.
        chain: The nodes from the product to the scores.
    """

    product: Node
    scale: float = 1.0
    divisor: float = 1.0
    mask: Node | None = None
    chain: list[Node] = field(default_factory=list)


@rule("attention_written_out", "aten.softmax.int")
def attention_written_out(node: Node, match: Match) -> Proposal:
    """softmax(scale·q·kᵀ + mask)·v; see the grammar above."""
    given = bind(node)
    match.require(given["dim"] in (-1, rank(node) - 1), f"softmax over axis {given['dim']}, which is not the last")
    match.require(value_of(node).dtype == value_of(given["self"]).dtype, "softmax changes the dtype")
    scores = _scores(given["self"], match)
    query, transposed = _factors(scores.product)
    key = _before_transposition(transposed, match)
    weights, dropout = _dropped_out(node, match)
    output = _weighing(weights, match)
    value = _factors(output)[1]
    for role, operand in (("query", query), ("key", key), ("value", value)):
        match.require(rank(operand) >= 2, f"the {role} has fewer than two axes", operand)

    three_axes = _is_call(scores.product, _BMM, _BADDBMM) and rank(value) == 3
    accumulated = _is_call(scores.product, _BADDBMM)
    match.require(three_axes or not accumulated, "baddbmm followed by a product over other axes", output)
    form = "bmm" if three_axes and (accumulated or scores.mask is None) else "matmul"

    drops = [weights] if weights is not node else []
    region = (transposed, *scores.chain, node, *drops, output)
    used_elsewhere = any(user is not output for user in weights.users)
    operands: dict[str, Node | None] = {"query": query, "key": key, "value": value, "mask": scores.mask}
    for role, taken in operands.items():
        match.require(taken not in region, f"the {role} is part of the attention itself")
    kernel = Softmax(scores.scale, dropout, returns_weights=used_elsewhere, form=form, divisor=scores.divisor)
    spec = Spec(kernel, Keys(), "attention", present(operands))
    return propose(spec, operands, *region, outputs=(output, weights) if used_elsewhere else (output,))


def _is_call(node: object, *names: str) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and op_name(node) in names


def _factors(product: Node) -> tuple[Node, Node]:
    """The two tensors that a product multiplies; the accumulator of baddbmm is left out."""
    if _is_call(product, _BADDBMM):
        return bind(product)["batch1"], bind(product)["batch2"]
    return bind(product)["self"], bind(product)["mat2" if _is_call(product, _BMM) else "other"]


def _scores(node: Node, match: Match) -> _Scores:
    """From the input of the softmax backwards to the product of queries and keys."""
    scores = _Scores(node)
    if _is_call(node, _ADD):
        inner, scores.mask = _split_sum(node, match)
        _take(scores, node, match)
        match.require(_same_shape(node, inner), "the mask widens the scores", node)
        node = inner
    if _is_call(node, _MUL, _DIV):
        given, multiplied = bind(node), _is_call(node, _MUL)
        what = "multiplied" if multiplied else "divided"
        known = isinstance(given["other"], (int, float)) and given["other"] != 0
        match.require(known, f"the scores are {what} by something else than a number", node)
        if multiplied:
            scores.scale = float(given["other"])
        else:
            scores.divisor = float(given["other"])
        _take(scores, node, match)
        node = given["self"]
    given = match.call(
        node, _MATMUL, _BMM, _BADDBMM, reason=f"the scores come from {op_name(node)}, not from a product of q and kᵀ"
    )
    _take(scores, node, match)
    if _is_call(node, _BADDBMM):
        match.require(len(scores.chain) == 1, "a baddbmm is scaled or masked once more", node)
        match.require(given["beta"] == 1, "the accumulator of the baddbmm is scaled", node)
        scores.mask, scores.scale = given["self"], float(match.literal(given["alpha"], "alpha of the baddbmm"))
    scores.product = node
    return scores


def _take(scores: _Scores, node: Node, match: Match) -> None:
    match.require(len(node.users) == 1, f"the scores ({op_name(node)}) are used elsewhere too", node)
    scores.chain.insert(0, node)


def _split_sum(node: Node, match: Match) -> tuple[Node, Node]:
    """(scores, mask) of a sum; the scores are the side that is a product with something transposed."""
    given = bind(node)
    sides = (given["self"], given["other"])
    match.require(all(isinstance(side, Node) for side in sides), "a number is added to the scores", node)
    match.require(given["alpha"] == 1, "the mask is scaled while it is added", node)
    found = [side for side in sides if _is_product_with_transposed(side)]
    match.require(found, "neither side of the sum is a product of q and kᵀ", node)
    mask = sides[1] if found[0] is sides[0] else sides[0]
    match.require(value_of(mask).dtype.is_floating_point, f"a mask of {value_of(mask).dtype} is added", node)
    return found[0], mask


def _is_product_with_transposed(node: Node) -> bool:
    inner = bind(node)["self"] if _is_call(node, _MUL, _DIV) else node
    return _is_call(inner, _MATMUL, _BMM, _BADDBMM) and _is_call(_factors(inner)[1], *_SWAPS)


def _before_transposition(node: Node, match: Match) -> Node:
    """The k of kᵀ, where the last two axes, and no others, change places."""
    axes = rank(node)
    match.call(node, *_SWAPS, reason=f"the keys come from {op_name(node)}, not from a transposition")
    match.require(len(node.users) == 1, "the transposed keys are used elsewhere too", node)
    given = bind(node)
    if _is_call(node, _TRANSPOSE):
        swapped = sorted((given["dim0"] % axes, given["dim1"] % axes))
        match.require(swapped == [axes - 2, axes - 1], f"axes {swapped} of the keys change places, not the last", node)
    if _is_call(node, _PERMUTE):
        order = [axis % axes for axis in given["dims"]]
        straight = order == [*range(axes - 2), axes - 1, axes - 2]
        match.require(straight, f"the keys are permuted to {order}, which is more than swapping the last axes", node)
    return given["self"]


def _dropped_out(softmax: Node, match: Match) -> tuple[Node, float]:
    """The weights as they are applied, and the probability of dropout as executed."""
    drops = [user for user in softmax.users if _is_call(user, _DROPOUT)]
    if not drops:
        return softmax, 0.0
    match.require(len(softmax.users) == 1, "the weights before dropout are used elsewhere too", softmax)
    given = bind(drops[0])
    return drops[0], float(match.literal(given["p"], "dropout probability")) if given["train"] else 0.0


def _weighing(weights: Node, match: Match) -> Node:
    """The product of the weights with the values."""
    found = [user for user in weights.users if _is_call(user, _MATMUL, _BMM) and _factors(user)[0] is weights]
    match.require(found, f"no product has the result of {op_name(weights)} as its first factor", weights)
    match.require(len(found) == 1, f"the weights multiply {len(found)} values", weights)
    return found[0]


def _same_shape(a: Node, b: Node) -> bool:
    return rank(a) == rank(b) and bool(statically_known_true(sym_eq(shape_of(a), shape_of(b))))
