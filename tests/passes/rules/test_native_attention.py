"""The native operators of torch's transformer layers, as a capture without gradients shows them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

import itnet
from itnet_compiler.capture.export import capture
from itnet_compiler.capture.signature import SignatureReader
from itnet_compiler.ir.domain import Keys
from itnet_compiler.ir.encoder_layer import EncoderLayer
from itnet_compiler.ir.kernel import Kernel
from itnet_compiler.ir.projected_softmax import ProjectedSoftmax
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.passes.axes import AxisRole, roles_of
from itnet_compiler.passes.match import Proposal, Refusal, Rule, op_name
from itnet_compiler.passes.rules.native_attention import encoder_layer, native_attention
from itnet_compiler.passes.verify import Verifier

X = torch.randn(3, 5, 12)
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])
LATER = torch.ones(5, 5, dtype=torch.bool).triu(1)


def _anchor(rule: Rule, model: nn.Module, *inputs: Any, **keywords: Any) -> Node:
    call = SignatureReader(inspect.signature(model.forward)).read(inputs, keywords)
    graph = capture(model.eval(), call, grad=False).graph
    (node,) = [node for node in graph.nodes if node.op == "call_function" and op_name(node) in rule.anchors]
    return node


def _proposed(rule: Rule, kernel: Kernel, origin: str, model: nn.Module, *inputs: Any, **keywords: Any) -> Proposal:
    """The rule's proposal, with the kernel expected, verified at the real and at other sizes."""
    proposal = rule(_anchor(rule, model, *inputs, **keywords))
    assert (proposal.spec.kernel, proposal.spec.domain, proposal.spec.origin) == (kernel, Keys(), origin)
    checked = Verifier().check(proposal, find_lowering("library").build(proposal.spec))
    assert checked.status == "verified", checked.note
    assert checked.region_error == checked.resized_error == 0.0
    assert checked.definition_error < 1e-12
    return proposal


def _attention() -> nn.MultiheadAttention:
    return nn.MultiheadAttention(12, 2, batch_first=True)


@pytest.mark.parametrize(
    ("keywords", "kernel"),
    [
        ({}, ProjectedSoftmax(2, weights="mean")),
        ({"average_attn_weights": False}, ProjectedSoftmax(2, weights="heads")),
        ({"key_padding_mask": PADDED}, ProjectedSoftmax(2, "keys", "mean")),
        ({"key_padding_mask": PADDED, "need_weights": False}, ProjectedSoftmax(2, "keys")),
        ({"attn_mask": LATER}, ProjectedSoftmax(2, "full", "mean")),
        ({"attn_mask": LATER, "key_padding_mask": PADDED}, ProjectedSoftmax(2, "full", "mean")),
    ],
    ids=str,
)
def test_attention(keywords: dict[str, Any], kernel: ProjectedSoftmax) -> None:
    proposal = _proposed(native_attention, kernel, "attention", _attention(), X, X, X, **keywords)
    assert proposal.spec.operands[0] == "input"
    assert ("mask" in proposal.spec.operands) == bool(kernel.mask)


def test_without_weights_the_node_is_one_tensor() -> None:
    proposal = _proposed(native_attention, ProjectedSoftmax(2), "attention", _attention(), X, X, X, need_weights=False)
    assert isinstance(proposal.outputs[0].meta["val"], Tensor)
    assert len(proposal.region) == 2


@pytest.mark.parametrize(
    "settings", [{}, {"activation": "gelu"}, {"norm_first": True, "layer_norm_eps": 1e-3}], ids=str
)
def test_encoder_layer(settings: dict[str, Any]) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, **settings)
    plain = {"eps" if name == "layer_norm_eps" else name: value for name, value in settings.items()}
    _proposed(encoder_layer, EncoderLayer(2, **plain), "transformer encoder layer", layer, X)


@pytest.mark.parametrize(
    ("keywords", "mask"), [({"src_key_padding_mask": PADDED}, "keys"), ({"src_mask": LATER}, "full")], ids=str
)
def test_masked_encoder_layer(keywords: dict[str, Any], mask: str) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
    _proposed(encoder_layer, EncoderLayer(2, mask), "transformer encoder layer", layer, X, **keywords)


def test_masks_leave_something_to_compare() -> None:
    """In the verification; any number but 0 masks, so that random numbers would mask all."""
    from itnet_compiler.passes.sampling import real_sizes
    from itnet_compiler.passes.verify import _draw_inputs, _inputs

    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True)
    proposal = encoder_layer(_anchor(encoder_layer, layer, X, src_key_padding_mask=PADDED))
    (sizes,) = real_sizes(_inputs(proposal))
    drawn = _draw_inputs(proposal, sizes)[proposal.operands["mask"]]
    assert 0 < drawn.isinf().float().mean() < 0.6
    assert set(drawn.unique().tolist()) == {0.0, -torch.inf}


def _call(**changed: Any) -> Node:
    """A node as a user's own call of the operator would give it."""
    graph = torch.fx.Graph()
    names = ("query", "key", "value", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias", "mask")
    nodes = {name: graph.placeholder(name) for name in names}
    for name in names:
        nodes[name].meta["val"] = torch.empty(3, 5, 12)
    nodes["mask"].meta["val"] = torch.empty(3, 5)
    x = nodes["query"]
    given = {"query": x, "key": x, "value": x, "embed_dim": 12, "num_head": 2} | {n: nodes[n] for n in names[3:7]}
    given |= {name: nodes.get(value, value) if isinstance(value, str) else value for name, value in changed.items()}
    return graph.call_function(torch.ops.aten._native_multi_head_attention.default, (), given)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"key": "key"}, "different tensors"),
        ({"embed_dim": 8}, "8 features are expected where there are 12"),
        ({"mask": "mask"}, "a mask of type None"),
        ({"mask": "mask", "mask_type": 2}, "a mask of 2 axes for full"),
        ({"need_weights": False}, "used although they were not asked for"),
    ],
    ids=str,
)
def test_refusals(changed: dict[str, Any], reason: str) -> None:
    node = _call(**changed)
    with pytest.raises(Refusal, match=reason):
        native_attention(node)


def test_text() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 20, batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        unified = itnet.unify(layer, X)
    (node,) = unified.integrals.values()
    assert (node.origin, node.family) == ("transformer encoder layer", "softmax")
    assert "over keys, kernel softmax(heads=2, norm_first)" in unified.ir
    assert "1 integral" in str(unified.report())
    assert "N_1" in unified.explain(node.name)
    (call,) = [call for call in unified.graph.nodes if "integral" in call.meta]
    assert roles_of(call) == (AxisRole.BATCH, AxisRole.POSITION, AxisRole.FEATURE)
