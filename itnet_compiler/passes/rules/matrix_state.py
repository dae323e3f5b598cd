"""Rule ``matrix_state``: re-rolled loops over a sum of outer products, as one node (see ``forms.matrix_state``)."""

from __future__ import annotations

from torch.fx import Node

from ...ir.arranged_state import TIME, ArrangedState
from ...ir.domain import Past
from ...ir.kernel import Spec
from ..forms.labels import letters
from ..forms.matrix_state import Form, find
from ..match import Match, Proposal, propose, rule, value_of

__all__ = ["matrix_state"]

_PRODUCTS = ("aten.matmul.default", "aten.bmm.default", "aten.einsum.default", "aten.sum.dim_IntList")


@rule("matrix_state", *_PRODUCTS)
def matrix_state(node: Node, match: Match) -> Proposal:
    """S_t = a_t ⊙ S_{t−1} + k_t ⊗ v_t, y_t = Σ_c q_t·S_t."""
    form = find(node, match)
    outputs = (node,) if form.last is None else (node, form.last)
    tensors = [*(leaf.node for leaf in form.leaves.values()), *outputs]
    match.closed(form.region, outputs, {role: leaf.node for role, leaf in form.leaves.items()})
    dtypes = {value_of(one).dtype for one in tensors}
    match.require(len(dtypes) == 1, "operands and result differ in dtype", node)
    match.require(dtypes.pop().is_floating_point, "the state is complex", node)
    names = _names(form, match)
    axes = {role: leaf.axes for role, leaf in form.leaves.items()}
    texts = {role: form.tracer.text(own, names) for role, own in axes.items()}
    kernel = ArrangedState(
        query=texts["query"],
        key=texts["key"],
        value=texts["value"],
        output=form.tracer.text(form.output, names),
        rate=texts.get("rate"),
        factor=texts.get("decay"),
        constant=form.constant,
        initial=texts.get("initial"),
        last=form.tracer.text(form.state, names) if form.last is not None else None,
        scale=form.scale,
        sizes=form.tracer.sizes([*axes.values(), form.output, form.state], names),
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
