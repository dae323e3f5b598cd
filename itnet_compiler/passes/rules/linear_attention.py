"""Rule ``linear_attention``: sums over positions weighted by products of features (see ``forms.separable``)."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Keys
from ...ir.kernel import Spec
from ...ir.separable import Separable
from ..forms.labels import letters
from ..forms.memory_order import memory_order
from ..forms.separable import find
from ..forms.separable_normal import Form
from ..match import Match, Proposal, propose, rule, value_of

__all__ = ["linear_attention"]

_PRODUCTS = ("aten.matmul.default", "aten.bmm.default", "aten.einsum.default")


@rule("linear_attention", *_PRODUCTS, "aten.sum.dim_IntList", "aten.div.Tensor", "aten.mul.Tensor")
def linear_attention(node: Node, match: Match) -> Proposal:
    """y = Σ_j (Σ_c q·k)·v, in whichever order; causal; divided by the sum of its weights."""
    form = find(node, match)
    leaves = {"query": form.query, "key": form.key, "value": form.value, "mask": form.mask}
    present = {role: leaf for role, leaf in leaves.items() if leaf is not None}
    match.closed(form.region, (node,), {role: leaf.node for role, leaf in present.items()})
    dtypes = {value_of(leaf.node).dtype for role, leaf in present.items() if role != "mask"}
    match.require(dtypes == {value_of(node).dtype}, "operands and result differ in dtype", node)
    names = _names(form, match)
    kernel = Separable(
        **{role: form.tracer.text(leaf.axes, names) for role, leaf in present.items()},
        output=form.tracer.text(form.output, names),
        hides=form.hides,
        softmaxed=form.softmaxed,
        causal=form.causal,
        normalised=form.normalised,
        eps=form.eps,
        clamped=form.clamped,
        scale=form.scale,
        averaged=form.averaged,
        sizes=form.tracer.sizes([*(leaf.axes for leaf in present.values()), form.output], names),
        memory=memory_order(node),
    )
    match.require(set(kernel.labels.keys) == {names[label] for label in form.tracer.flat([form.keys])}, "labels", node)
    origin = "linear attention" if form.query is not None else "weighted sum"
    spec = Spec(kernel, Keys(causal=form.causal), origin, tuple(kernel.layouts))
    return propose(spec, {role: present[role].node for role in kernel.layouts}, *form.region)


def _names(form: Form, match: Match) -> dict[str, str]:
    """Names of labels by what they count."""
    flat = form.tracer.flat
    keys, channels, output = flat([form.keys]), flat([form.channels]), flat(form.output)
    key, value = flat(form.key.axes), flat(form.value.axes)
    query = flat(form.query.axes) if form.query is not None else ()
    own, others = (query, {*key, *value}) if form.query is not None else (key, set(value))
    queries = [label for label in output if label in own and label not in others]
    features = [label for label in output if label in value and label not in (*query, *key)]
    batch = [label for label in output if label not in (*queries, *features)]
    names = letters(batch, queries, keys, channels, features)
    mask = flat(form.mask.axes) if form.mask is not None else ()
    for label in (*query, *key, *value, *mask):
        match.require(label in names, "one factor has an axis of its own that is summed or expanded")
    if form.causal:
        match.require(len(queries) == len(keys) == 1, "positions in several axes")
    return names
