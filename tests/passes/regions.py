"""Run a proposed region, its lowering and its definition on the same real numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from itnet_compiler.capture.leaves import leaves_installed, restore_leaf
from itnet_compiler.capture.regions import inline_regions
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.passes.match import Proposal, Refusal, Rule, op_name
from itnet_compiler.passes.verify import Verifier

__all__ = ["captured", "check_region", "propose_one", "refusals"]


def captured(module: nn.Module, *inputs: Any, dynamic: bool = True, **keywords: Any) -> GraphModule:
    """The module as a graph of ATen operators, every size dynamic where it can be."""
    free = pytree.tree_map(
        lambda leaf: dict.fromkeys(range(leaf.dim()), Dim.AUTO) if isinstance(leaf, Tensor) else None, inputs
    )
    with leaves_installed():
        program = torch.export.export(
            module, inputs, keywords, strict=False, dynamic_shapes=free if dynamic and not keywords else None
        )
    graph_module = program.module()
    inline_regions(graph_module)
    for node in graph_module.graph.nodes:
        restore_leaf(node)
    graph_module.recompile()
    return graph_module


def _anchors(graph_module: GraphModule, rule: Rule) -> list[Node]:
    return [node for node in graph_module.graph.nodes if node.op == "call_function" and op_name(node) in rule.anchors]


def propose_one(graph_module: GraphModule, rule: Rule) -> Proposal:
    """The proposal at the only anchor of the graph that the rule accepts."""
    found = []
    for node in _anchors(graph_module, rule):
        try:
            found.append(rule(node))
        except Refusal as refusal:
            reason = refusal.reason
    assert len(found) == 1, f"{len(found)} proposals" if found else reason
    return found[0]


def refusals(graph_module: GraphModule, rule: Rule) -> list[str]:
    """Why the rule refuses every anchor of the graph; fails where it accepts one."""
    reasons = []
    for node in _anchors(graph_module, rule):
        try:
            proposal = rule(node)
        except Refusal as refusal:
            reasons.append(refusal.reason)
        else:
            raise AssertionError(f"accepted as {proposal.spec}")
    return reasons


class _Recorder(Interpreter):
    """Keeps the value of every node."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, node: Node) -> Any:
        self.values[node] = value = super().run_node(node)
        return value


def check_region(
    graph_module: GraphModule, proposal: Proposal, *inputs: Any, tolerance: float = 1e-5, definition: bool = True
) -> None:
    """Region and library lowering agree bit by bit, forward and backward; the definition within ``tolerance``.

    The driver's own verification of the proposal passes too.
    """
    checked = Verifier().check(proposal, find_lowering("library").build(proposal.spec))
    assert checked.status == "verified", checked.note
    assert checked.error < 1e-12
    recorder = _Recorder(graph_module)
    recorder.run(*inputs)
    fixed = recorder.values
    region = set(proposal.region)
    assert all(output in region for output in proposal.outputs)
    for node in region - set(proposal.outputs):
        assert set(node.users) <= region, f"{node} is used outside the region"
    external = sorted(set(_nodes(proposal.operands)))
    assert not region.intersection(external)

    def operands() -> dict[Node, Any]:
        def copy(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            return value.detach().clone(memory_format=torch.preserve_format).requires_grad_()

        return {node: copy(fixed[node]) for node in external}

    def run_region(values: dict[Node, Any]) -> tuple[Any, ...]:
        environment = fixed | values
        ordered = [node for node in graph_module.graph.nodes if node in region]
        for node in ordered:
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda used: environment[used])
            environment[node] = node.target(*args, **kwargs)
        return tuple(environment[output] for output in proposal.outputs)

    def run(name: str) -> Any:
        function = find_lowering(name).build(proposal.spec).function

        def apply(values: dict[Node, Any]) -> tuple[Any, ...]:
            given = torch.fx.node.map_arg(proposal.operands, lambda used: values[used])
            result = function(**given)
            return result if len(proposal.outputs) > 1 else (result,)

        return apply

    def forward_and_gradients(apply: Any) -> list[Tensor]:
        values = operands()
        leaves = [value for value in values.values() if isinstance(value, Tensor) and value.requires_grad]
        torch.manual_seed(3)
        outputs = [out for out in pytree.tree_leaves(apply(values)) if isinstance(out, Tensor)]
        generator = torch.Generator().manual_seed(4)
        smooth = [out for out in outputs if out.is_floating_point()]
        weights = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in smooth]
        pulled = torch.autograd.grad(smooth, leaves, weights, allow_unused=True, materialize_grads=True)
        return [*outputs, *pulled]

    expected = forward_and_gradients(run_region)
    for mine, theirs in zip(forward_and_gradients(run("library")), expected, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    if definition:
        for mine, theirs in zip(forward_and_gradients(run("reference")), expected, strict=True):
            assert (mine - theirs).double().norm() <= tolerance * max(theirs.double().norm().item(), 1.0)


def _nodes(value: Any) -> list[Node]:
    return [leaf for leaf in pytree.tree_leaves(value, is_leaf=lambda x: isinstance(x, Node)) if isinstance(leaf, Node)]
