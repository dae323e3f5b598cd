"""Rule ``matrix_state``: re-rolled loops over a sum of outer products, as one node (see ``matrix_state_form``)."""

from __future__ import annotations

from torch.fx import Node

from ..ir.arranged_state import TIME, ArrangedState
from ..ir.domain import Past
from ..ir.kernel import Spec
from ..ir.layout import shown
from .labels import Axes, letters
from .match import Match, Proposal, is_made, propose, rule, value_of
from .matrix_state_form import Form, find

__all__ = ["matrix_state"]

_PRODUCTS = ("aten.matmul.default", "aten.bmm.default", "aten.einsum.default", "aten.sum.dim_IntList")


@rule("matrix_state", *_PRODUCTS)
def matrix_state(node: Node, match: Match) -> Proposal:
    """S_t = a_t ⊙ S_{t−1} + k_t ⊗ v_t, y_t = Σ_c q_t·S_t."""
    form = find(node, match)
    inside, outputs = set(form.region), (node,) if form.last is None else (node, form.last)
    for one in form.region:
        used = one not in outputs and not is_made(one) and any(user not in inside for user in one.users)
        match.require(not used, f"the intermediate value {one.name} is used elsewhere", one)
    tensors = [*(leaf.node for leaf in form.leaves.values()), *outputs]
    for role, leaf in form.leaves.items():
        match.require(leaf.node not in inside, f"the {role} is part of the recurrence itself", leaf.node)
    dtypes = {value_of(one).dtype for one in tensors}
    match.require(len(dtypes) == 1, "operands and result differ in dtype", node)
    match.require(dtypes.pop().is_floating_point, "the state is complex", node)
    names = _names(form, match)
    axes = {role: leaf.axes for role, leaf in form.leaves.items()}

    def text(own: Axes) -> str:
        return shown(tuple(tuple(names[label] for label in axis) for axis in form.tracer.resolve(own)))

    kernel = ArrangedState(
        query=text(axes["query"]),
        key=text(axes["key"]),
        value=text(axes["value"]),
        output=text(form.output),
        rate=text(axes["rate"]) if "rate" in axes else None,
        factor=text(axes["decay"]) if "decay" in axes else None,
        constant=form.constant,
        initial=text(axes["initial"]) if "initial" in axes else None,
        last=text(form.state) if form.last is not None else None,
        scale=form.scale,
        sizes=_sizes(form, [*axes.values(), form.output, form.state], names),
    )
    spec = Spec(kernel, Past(), "linear attention", tuple(kernel.layouts))
    operands = {role: form.leaves[role].node for role in kernel.layouts}
    return propose(spec, operands, *form.region, outputs=outputs)


def _names(form: Form, match: Match) -> dict[str, str]:
    """Names of labels by what they count; refuses where the recurrence is another one."""
    flat = form.tracer.flat
    own = {role: set(flat(leaf.axes)) for role, leaf in form.leaves.items()}
    channels, output = set(form.channels), flat(form.output)
    state = {form.time, *flat(form.state)}
    for role in ("query", "key", "value"):
        match.require(form.time in own[role], f"the {role} is the same at all steps", form.leaves[role].node)
        match.require(role == "value" or channels <= own[role], f"the {role} lacks a channel", form.leaves[role].node)
    for role, labels in own.items():
        match.require(labels <= state, f"the {role} has an axis that the state has not", form.leaves[role].node)
    features = own["value"] - own["query"] - own["key"] - own.get("rate", set()) - {form.time}
    match.require(features, "its state is no matrix: the values have no axis of their own", form.leaves["value"].node)
    for role, free in (("rate", channels | features), ("decay", features)):
        shared = own.get(role, set()) & free
        match.require(not shared, f"the {role} is another one for each feature", form.leaves["value"].node)
    match.require(not own["value"] & channels, "the values have channels", form.leaves["value"].node)
    match.require(set(output) == state - channels, "the result has other axes than the state", match.anchor)
    batch = [label for label in output if label not in features and label != form.time]
    order = [label for label in flat(form.state) if label in channels]
    kept = [label for label in output if label in features]
    return letters(batch, (), (), order, kept) | {form.time: TIME}


def _sizes(form: Form, layouts: list[Axes], names: dict[str, str]) -> tuple[tuple[str, int], ...]:
    """Fixed extents of the labels that occur in merged axes."""
    merged = {label for axes in layouts for axis in form.tracer.resolve(axes) if len(axis) > 1 for label in axis}
    found = {names[label]: form.tracer.fixed(label) for label in merged}
    return tuple(sorted((name, size) for name, size in found.items() if size is not None))
