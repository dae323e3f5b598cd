"""``torch``'s ``associative_scan`` while tracing: one node instead of a tree whose depth fixes the length.

On the CPU it is a Python function that combines neighbours, neighbours of these and so on. Its combination is traced
once, by itself, on small samples; recorded is one operator, put back as an ``AssociativeScan`` after the capture. A
combination that is more than operators which compute every position alone, such as one that takes tensors from outside,
is traced as the tree that it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..ir.body import Body, Call, Ref, function_named
from ..passes.associative import AssociativeScan
from ..passes.loops.given import program
from ..passes.loops.unrolled import NotALoop
from ..passes.sampling import hint
from ..settings import NEAR_MISSES, debug

__all__ = ["place", "restore", "stand_in"]

_library = torch.library.Library("itnet_leaf", "FRAGMENT")
_library.define(
    "associative_scan(Tensor[] leaves, str combine) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.register_fake(
    "itnet_leaf::associative_scan", lambda leaves, combine: [one.new_empty(one.shape) for one in leaves], lib=_library
)

# Combinations that have been recorded, by their text.
_combinations: dict[str, Body] = {}


def place() -> tuple[Any, str]:
    """Module and name of the function that combines neighbours."""
    return importlib.import_module("torch._higher_order_ops.associative_scan"), "generic_associative_scan"


def stand_in(original: Callable[..., Any], traced: Callable[[Any], bool]) -> Callable[..., Any]:
    """What records a call where ``traced`` says so of its arguments, and else is ``original``."""

    def call(operator: Any, leaves: Any, dim: int = 0, additional_inputs: Any = ()) -> Any:
        if dim == 0 and not additional_inputs and traced(leaves):
            combine = _traced(operator, leaves)
            if combine is not None and _keeps_sizes(combine, leaves):
                text = repr(combine)
                _combinations[text] = combine
                return list(torch.ops.itnet_leaf.associative_scan(list(leaves), text))
        return original(operator, leaves, dim, additional_inputs)

    return call


def restore(node: Node) -> bool:
    """Put the function itself into a node that was recorded. Returns whether it is one."""
    if node.target is not torch.ops.itnet_leaf.associative_scan.default:
        return False
    leaves, text = node.args
    node.target, node.args = AssociativeScan(_combinations[str(text)]), (leaves,)
    return True


def _traced(operator: Callable[..., Any], leaves: Any) -> Body | None:
    """The combination as a program; None where it is more than that."""
    if not all(one.is_floating_point() or one.is_complex() for one in leaves):
        return None
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.enable_grad():
            samples = _samples(leaves) + _samples(leaves)
            module = make_fx(lambda *pair: tree_leaves(operator(*pair)))(*samples)
            calls, results = program(module, len(leaves), len(leaves))
            combine = Body(tuple(calls), tuple(results), tuple(results))
            if all(map(_is_elementwise, calls)) and _agrees(operator, combine, samples):
                return combine
    except Exception as error:
        reason = error.reason if isinstance(error, NotALoop) else f"{type(error).__name__}: {error}"
        debug(NEAR_MISSES, "an associative scan is traced as a tree: %s", reason)
    return None


def _keeps_sizes(combine: Body, leaves: Any) -> bool:
    """Whether what becomes of two elements has their sizes; that it has is assumed of symbolic ones from now on."""
    with disable_proxy_modes_tracing(), torch._C.DisableTorchFunction(), torch.no_grad():
        made = AssociativeScan(combine)._combined(*leaves, *leaves)
        return all(one.shape == leaf.shape for one, leaf in zip(made, leaves, strict=True))


def _samples(leaves: Any) -> list[Tensor]:
    """Two elements of each leaf, with small sizes that are equal where those of the leaves are."""
    small: dict[int, int] = {0: 0, 1: 1}
    return [
        torch.rand(2, *(small.setdefault(hint(size), len(small) + 1) for size in one.shape[1:]), dtype=one.dtype) + 0.5
        for one in leaves
    ]


def _is_elementwise(call: Call) -> bool:
    """Whether a call computes every position alone, and holds no size."""
    operator: Any = function_named(call.target)
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in operator.tags
    others = [value for value in (*call.args, *(value for _, value in call.kwargs)) if not isinstance(value, Ref)]
    plain = all(value is None or isinstance(value, (bool, int, float)) for value in others)
    return torch.Tag.pointwise in operator.tags and not operator._schema.is_mutable and not random and plain


def _agrees(operator: Callable[..., Any], combine: Body, samples: list[Tensor]) -> bool:
    """Whether the program computes what the combination does, and has its gradients."""
    found = []
    for run in (operator, AssociativeScan(combine)._combined):
        leaves = [one.clone().requires_grad_() for one in samples]
        results = tree_leaves(run(*leaves))
        ones = [torch.ones_like(one) for one in results]
        slopes = torch.autograd.grad(results, leaves, ones, materialize_grads=True, allow_unused=True)
        found.append([*results, *slopes])
    count = len(samples) // 2
    kept = all(
        result.shape == one.shape and result.dtype == one.dtype
        for result, one in zip(found[0][:count], samples, strict=False)
    )
    return kept and all(torch.equal(a, b) for a, b in zip(*found, strict=True))
