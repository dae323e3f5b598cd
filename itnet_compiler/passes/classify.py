"""Every node of a graph in one of a few classes, so that what moves information between positions is accounted for.

classes = classify(graph)
classes[node].category, classes[node].reason
coverage(classes)       # integrals / (integrals + position-mixing operators left alone)
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch.fx import Graph, Node

from .alternatives import adds_alternatives
from .axes import Analysis, AxisRole, analyse
from .axes.algebra import Axis
from .dependence import Dependence, tensors_of
from .forms.contraction import contraction
from .forms.products import leads_to_product
from .forms.shifts import SUMS, moved_axes
from .forms.shifts import read as read_shifts
from .match import Match, Refusal, bind
from .operators import (
    CONTRACTIONS,
    CREATIONS,
    CUMULATIVE,
    EMBEDDINGS,
    EXTREMA,
    FOURIER,
    INDEXED,
    LIKE,
    LOSSES,
    MIXING,
    NORMALISATIONS,
    POINTWISE,
    REDUCTIONS,
    REINDEXING,
    ROUTING,
    SOFTMAXES,
    STATISTICS,
    SUPPORT,
    folds_nothing,
    operator_name,
)
from .statistics import is_statistic, sums_exponentials

__all__ = ["Category", "Classification", "classify", "coverage"]

BATCH, POSITION, FEATURE, UNKNOWN = AxisRole.BATCH, AxisRole.POSITION, AxisRole.FEATURE, AxisRole.UNKNOWN


class Category(enum.StrEnum):
    """What a node does to the positions of activations; ``support`` gives none.

    What is computed for pairs of positions and is taken by nothing but kernels (scores that two attentions share,
    distances that become a bias, an index that chooses keys) moves nothing: it says how much an integral moves.
    """

    INTEGRAL = "integral"
    POINTWISE = "pointwise"
    REINDEXING = "re-indexing"
    NORMALISATION = "normalisation"
    ROUTING = "routing"
    KERNEL = "values of kernels"
    UNMATCHED = "unmatched"
    SUPPORT = "support"


@dataclass(frozen=True)
class Classification:
    """The class of one node, and why it is in it.

    Attributes:
        category: The class.
        reason: One phrase.
        mixing: Whether an unmatched node moves, or may move, information between positions. What only relates samples
            of the batch does not.
        pairs: Whether it is a product for all pairs of positions, which a kernel may be made of, or the maximum of one.
    """

    category: Category
    reason: str
    mixing: bool = True
    pairs: bool = False


def classify(graph: Graph) -> dict[Node, Classification]:
    """The class of every node of ``graph``, by a fresh analysis of its axes; what no table knows is ``unmatched``."""
    analysis = analyse(graph)
    found = {node: _classify(node, analysis) for node in graph.nodes}
    for node in reversed(graph.nodes):
        if found[node].pairs and _is_of_kernels(node, found):
            found[node] = Classification(Category.KERNEL, "gives values to the kernels of integrals alone")
    return found


_PASSED = frozenset(
    {Category.POINTWISE, Category.REINDEXING, Category.ROUTING, Category.NORMALISATION, Category.KERNEL}
)
_CARRIED = frozenset({"input", "query", "key", "value"})
# Nodes between a product and the kernels that take it.
_MOST_BETWEEN = 256


def _is_of_kernels(node: Node, classes: Mapping[Node, Classification]) -> bool:
    """Whether all that comes of ``node`` ends in integrals, as what their kernels are made of."""
    waiting, seen, ends = list(node.users), {node}, list[Node]()
    while waiting:
        user = waiting.pop()
        if user.op == "output":
            return False
        if user in seen or not tensors_of(user) or operator_name(user) in LIKE:
            continue
        seen.add(user)
        if classes[user].category is Category.INTEGRAL:
            ends.append(user)
        elif classes[user].category in _PASSED and len(seen) < _MOST_BETWEEN:
            waiting += user.users
        else:
            return False
    return bool(ends) and all(_makes_kernel(end, seen) for end in ends)


def _makes_kernel(end: Node, seen: set[Node]) -> bool:
    """Whether an integral takes what was ``seen`` for its kernel and not for its values."""
    taken = {
        role.rstrip("0123456789") for role, value in end.kwargs.items() if isinstance(value, Node) and value in seen
    }
    return end.meta["integral"].spec.kernel.family == "softmax" and not _CARRIED & taken


def coverage(classes: Mapping[Node, Classification]) -> float:
    """Integrals / (integrals + position-mixing operators left alone); 1 where there are neither.

    An operator that nothing is known of counts as position-mixing.
    """
    integrals = sum(found.category is Category.INTEGRAL for found in classes.values())
    left = sum(found.category is Category.UNMATCHED and found.mixing for found in classes.values())
    return integrals / (integrals + left) if integrals + left else 1.0


def _classify(node: Node, analysis: Analysis) -> Classification:
    if node.op in ("placeholder", "get_attr", "output"):
        return Classification(Category.SUPPORT, node.op)
    if "integral" in node.meta:
        return Classification(Category.INTEGRAL, node.meta["integral"].spec.origin)
    name = operator_name(node)
    if not tensors_of(node) or name in SUPPORT:
        return Classification(Category.SUPPORT, "sizes and checks")
    if name in LIKE or name in CREATIONS:
        return Classification(Category.SUPPORT, "a constant, but for its size")
    if analysis.dependences[node] is not Dependence.ACTIVATION:
        return Classification(Category.SUPPORT, "does not depend on activations")
    if node.op != "call_function":
        return Classification(Category.UNMATCHED, f"nothing is known of the {node.op} {node.target}")
    return _classify_call(node, name, analysis)


def _classify_call(node: Node, name: str, analysis: Analysis) -> Classification:
    if name in ("max", "min") and "other" in bind(node):
        return Classification(Category.POINTWISE, "elementwise")
    if name in CONTRACTIONS:
        return _of_contraction(node, name, analysis)
    if name in REDUCTIONS | CUMULATIVE and not _is_floating(node):
        return Classification(Category.ROUTING, "counts and offsets")
    if name in REDUCTIONS:
        return _of_reduction(node, name, analysis)
    if name in SOFTMAXES | CUMULATIVE | FOURIER:
        return _along(name, _roles(node, analysis))
    if name in INDEXED:
        return _of_index(node, name, analysis)
    if name in SUMS and _adds_shifted_copies(node):
        return Classification(Category.UNMATCHED, f"{name} of shifted copies of one tensor")
    for table, category, reason in _TABLES:
        if name in table:
            return Classification(category, reason)
    if name == "col2im" and folds_nothing(bind(node)):
        return Classification(Category.REINDEXING, "the same values in another shape")
    if name in MIXING:
        return Classification(Category.UNMATCHED, f"{MIXING[name]} ({_shown(name)}) that no rule took")
    return Classification(Category.UNMATCHED, f"no rule knows {_shown(name)}")


_TABLES: tuple[tuple[Iterable[str], Category, str], ...] = (
    (POINTWISE, Category.POINTWISE, "elementwise"),
    (EMBEDDINGS | {"one_hot"}, Category.POINTWISE, "a look-up at each position"),
    ({"getitem"}, Category.REINDEXING, "one of several results"),
    (REINDEXING, Category.REINDEXING, "moves values"),
    (NORMALISATIONS, Category.NORMALISATION, "normalisation layer"),
    (ROUTING, Category.ROUTING, "what goes where depends on the values"),
    (LOSSES, Category.SUPPORT, "a loss"),
)


def _shown(name: str) -> str:
    return name if "." in name else f"aten.{name}"


# ── Along axes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _roles(node: Node, analysis: Analysis) -> set[AxisRole]:
    """Roles of the axes along which the operator acts; axes of extent 1 hold nothing to mix."""
    given = bind(node)
    source = analysis(next(iter(given.values())))
    dims = given.get("dim")
    if dims is None or dims == []:
        acted = source
    else:
        acted = [source[dim] for dim in (dims if isinstance(dims, (list, tuple)) else [dims])] if source else []
    return {_acting_role(axis) for axis in acted if not axis.is_one}


def _acting_role(axis: Axis) -> AxisRole:
    """The role of an axis for what acts along it: a batch axis that holds positions too is one of positions."""
    return POSITION if axis.role is BATCH and POSITION in axis.roles else axis.role


def _is_floating(node: Node) -> bool:
    return any(item.is_floating_point() or item.is_complex() for item in tensors_of(node))


def _along(name: str, roles: set[AxisRole]) -> Classification:
    """By the axes acted along: features are pointwise, anything else mixes or may mix."""
    for role, where in ((POSITION, "a position axis"), (UNKNOWN, "an axis of unknown role"), (BATCH, "the batch axis")):
        if role in roles:
            return Classification(Category.UNMATCHED, f"{name} over {where}", role is not BATCH)
    return Classification(Category.POINTWISE, f"{name} over features")


def _of_reduction(node: Node, name: str, analysis: Analysis) -> Classification:
    if adds_alternatives(node):
        return Classification(Category.POINTWISE, "elementwise, of tensors that are stacked for it")
    roles = _roles(node, analysis)
    statistic = name in STATISTICS | EXTREMA and is_statistic(node)
    of_a_softmax = name in EXTREMA or (name == "sum" and sums_exponentials(node))
    if statistic and (roles <= {FEATURE, POSITION} or not of_a_softmax):
        if POSITION in roles and of_a_softmax:
            return Classification(Category.UNMATCHED, f"{name} of a written-out softmax over a position axis")
        return Classification(Category.NORMALISATION, f"{name} that the values are normalised by")
    found = _along(name, roles)
    return replace(found, pairs=name in EXTREMA and leads_to_product(next(iter(bind(node).values()))))


def _adds_shifted_copies(node: Node) -> bool:
    """Whether values of different positions of one tensor are added up."""
    match = Match(node)
    try:
        return bool(moved_axes(read_shifts(node, match), match))
    except Refusal:
        return False


# ── Products ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_contraction(node: Node, name: str, analysis: Analysis) -> Classification:
    read = contraction(node)
    if read is None:
        return Classification(Category.UNMATCHED, f"the axes of {_shown(name)} cannot be read")
    data = [index for index, operand in enumerate(read.operands) if not analysis.is_weight(operand)]
    met: dict[str, list[Axis]] = {}
    holders: dict[str, set[int]] = {}
    for index in data:
        for label, axis in zip(read.labels[index], analysis(read.operands[index]), strict=True):
            if not axis.is_one:
                met.setdefault(label, []).append(axis)
                holders.setdefault(label, set()).add(index)
    roles = {label: _common_role(axes) for label, axes in met.items()}
    summed = {roles[label] for label in read.summed if label in roles}
    if len(data) < 2:
        return _of_weighted_sum(name, summed)
    between = f"{name} between two activations"
    if POSITION in summed:
        return Classification(Category.UNMATCHED, f"{between}, summed over positions, as in attention written out")
    apart: dict[int, set[AxisRole]] = {}
    for label, held in holders.items():
        if len(held) == 1 and roles[label] is not FEATURE:
            apart.setdefault(min(held), set()).add(roles[label])
    if len(apart) > 1:
        return _of_pairs(between, list(apart.values()))
    if UNKNOWN in summed:
        return Classification(Category.UNMATCHED, f"{between}, summed over an axis of unknown role")
    if BATCH in summed:
        return Classification(Category.UNMATCHED, f"{between}, summed over samples", False)
    return Classification(Category.POINTWISE, "product of features at each position")


def _of_pairs(between: str, apart: list[set[AxisRole]]) -> Classification:
    """By the axes that each operand has for itself."""
    if all(POSITION in roles for roles in apart):
        reason = f"{between}, for all pairs of positions, as in attention written out"
        return Classification(Category.UNMATCHED, reason, pairs=True)
    if all(roles == {BATCH} for roles in apart):
        return Classification(Category.UNMATCHED, f"{between}, for all pairs of samples", False)
    reason = f"{between}, for all pairs along axes of unknown or different roles"
    return Classification(Category.UNMATCHED, reason, pairs=True)


def _common_role(axes: list[Axis]) -> AxisRole:
    roles = {_acting_role(axis) for axis in axes} - {UNKNOWN}
    return roles.pop() if len(roles) == 1 else UNKNOWN


def _of_weighted_sum(name: str, summed: set[AxisRole]) -> Classification:
    if POSITION in summed:
        return Classification(Category.UNMATCHED, f"{name} over the position axis (token mixing)")
    if UNKNOWN in summed:
        return Classification(Category.UNMATCHED, f"{name} over an axis of unknown role")
    if BATCH in summed:
        return Classification(Category.UNMATCHED, f"{name} over the batch axis", False)
    return Classification(Category.POINTWISE, f"{name} over features" if summed else f"{name} without a sum")


# ── Others ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _of_index(node: Node, name: str, analysis: Analysis) -> Classification:
    given = bind(node)
    source = next(iter(given.values()))
    indices = given.get("indices", given.get("index"))
    nodes = [one for one in (indices if isinstance(indices, (list, tuple)) else [indices]) if isinstance(one, Node)]
    if all(analysis.is_weight(one) for one in nodes):
        return Classification(Category.REINDEXING, "moves values between fixed places")
    if isinstance(source, Node) and analysis.is_weight(source) and name in ("index", "index_select", "gather"):
        return Classification(Category.POINTWISE, "a look-up in a table")
    return Classification(Category.ROUTING, f"{name} at places that depend on the input")
