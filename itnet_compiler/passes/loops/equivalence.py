"""Two programs on the same values: nodes that are to be replaced, and those that are to take their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ...ir.body import Call
from ...ir.integral import Integral, Verification
from ...ir.kernel import Kernel, Spec
from ...ir.loop import Loop
from ...lowering.base import default_lowering
from ...settings import NEAR_MISSES, debug
from ..effects import is_random, written_arguments
from ..sampling import draw, other_sizes, real_sizes
from ..verify import relative_error, widened

__all__ = ["Replacement", "check_replacement"]

# A recurrence carries its rounding errors over the steps.
TOLERANCE = 1e-10
# How many operators before a loop a layer may read through.
_MOST_BETWEEN = 6
# Factors of the random values: a recurrence may explode, or be chaotic, where they are large.
_SCALES = (1.0, 0.5, 0.1)


@dataclass(frozen=True)
class Replacement:
    """What goes and what comes.

    Attributes:
        old: Nodes that are to be replaced, in order.
        new: Nodes that take their place, in order.
        results: Pairs of an old node and the new one that stands in for it.
        written: Nodes outside whose storage both write.
    """

    old: Sequence[Node]
    new: Sequence[Node]
    results: Sequence[tuple[Node, Node]]
    written: Sequence[Node] = ()

    def inputs(self) -> list[Node]:
        """Nodes that either program takes from outside."""
        own = {*self.old, *self.new}
        found = (source for node in (*self.old, *self.new) for source in node.all_input_nodes)
        return list(dict.fromkeys(source for source in (*found, *self.written) if source not in own))


def read_through(old: Sequence[Node], new: Sequence[Node]) -> set[Node]:
    """Nodes before ``old`` that ``new`` does the work of: those between what the one and the other take.

    Where a loop takes x W and a layer in its place takes x and W, the product belongs to what is compared.
    """
    taken = set(Replacement(old, (), ()).inputs())
    sought = set(Replacement(new, (), ()).inputs())
    between: set[Node] = set()

    def reaches(node: Node, depth: int) -> bool:
        if node in sought:
            return True
        if not depth or node.op != "call_function" or is_random(node) or written_arguments(node):
            return False
        found = [reaches(source, depth - 1) for source in node.all_input_nodes]
        if any(found):
            between.add(node)
        return any(found)

    if not sought <= taken:
        for node in taken - sought:
            reaches(node, _MOST_BETWEEN)
    return between


def check_replacement(replacement: Replacement) -> Verification:
    """Compare results and written storages in float64, at the example's sizes and at others, and the definitions.

    ``failed`` with the reason in ``note`` where they differ.
    """
    inputs = replacement.inputs()
    definitions: list[float] = []
    errors: dict[str, float | None] = {"real": None, "other": None}
    notes: list[str] = []
    for what, candidates in (("real", real_sizes(inputs)), ("other", other_sizes(inputs))):
        problem = ""
        for bindings in candidates:
            try:
                error = _compare(replacement, inputs, bindings, definitions)
            except _DoesNotRun as reason:
                problem = f"{what} sizes: not checked: {reason}"
                continue
            problem = ""
            errors[what] = error
            if not error <= TOLERANCE:
                return Verification("failed", error, note=f"the loop differs from its steps at {what} sizes")
            break
        notes += [problem] if problem else []
    if errors["real"] is None and errors["other"] is None:
        return Verification("failed", note="the steps could not be run at any size; " + "; ".join(notes))
    definition = max(definitions, default=None)
    if definition is not None and not definition <= TOLERANCE:
        return Verification("failed", errors["real"], note="the lowering differs from the definition")
    return Verification("verified", errors["real"], errors["other"], definition, "; ".join(notes))


class _DoesNotRun(Exception):
    """The old program cannot be run on what was drawn."""


def _compare(replacement: Replacement, inputs: list[Node], bindings: Any, definitions: list[float]) -> float:
    """Smallest error over the scales of the random values at which the old program stays finite."""
    best: float | None = None
    for scale in _SCALES:
        drawn = _draw(inputs, bindings, scale)
        if drawn is None:
            raise _DoesNotRun("too large")
        try:
            expected = _run(replacement.old, drawn, replacement, 0)
        except Exception as error:
            debug(NEAR_MISSES, "the steps do not run at %s: %s", bindings, error)
            raise _DoesNotRun(f"the steps do not run there ({type(error).__name__})") from None
        if not all(bool(t.isfinite().all()) for t in pytree.tree_leaves(expected) if _is_float(t)):
            best = best if best is not None else float("inf")
            continue
        found: list[float] = []
        try:
            value = _run(replacement.new, drawn, replacement, 1, found)
        except Exception as error:
            debug(NEAR_MISSES, "the loop does not run at %s: %s: %s", bindings, type(error).__name__, error)
            return float("inf")
        error_ = relative_error(value, expected)
        best = error_ if best is None else min(best, error_)
        if best <= TOLERANCE:
            definitions += found
            return best
    assert best is not None
    return best


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _draw(inputs: list[Node], bindings: Any, scale: float) -> dict[Node, Any] | None:
    """Random values; matrices are scaled so that products keep the size of their factors."""
    generator = torch.Generator().manual_seed(0)
    drawn: dict[Node, Any] = {}
    for node in inputs:
        if "graph_module" in node.meta:
            drawn[node] = node.meta["graph_module"]
            continue
        value = draw(node.meta.get("val"), bindings, generator)
        if value is None:
            return None
        if _is_float(value) and node.op == "get_attr" and value.dim() > 1 and value.shape[-1]:
            value = value * value.shape[-1] ** -0.5
        drawn[node] = value * scale if _is_float(value) else value
    return drawn


def _run(
    nodes: Sequence[Node],
    drawn: dict[Node, Any],
    replacement: Replacement,
    side: int,
    definitions: list[float] | None = None,
) -> list[Any]:
    """Results of one program, and what it leaves in the storages that it writes."""
    values = {node: value.clone() if isinstance(value, Tensor) else value for node, value in drawn.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for node in nodes:
            args = tuple(widened(value) for value in map_arg(node.args, values.__getitem__))
            kwargs = {k: widened(v) for k, v in map_arg(node.kwargs, values.__getitem__).items()}
            if node.op == "call_module":
                values[node] = _integral(node.meta["integral"], kwargs, definitions)
            else:
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    kept = [pair[side] for pair in replacement.results]
    return [*(values[node] for node in kept), *(values[node] for node in replacement.written)]


def _integral(integral: Integral, operands: dict[str, Any], definitions: list[float] | None) -> Any:
    spec = widened_spec(integral.spec)
    lowered = integral.executable if spec is integral.spec else default_lowering(spec).build(spec)
    state = torch.random.get_rng_state()
    value = lowered.function(**operands)
    if definitions is not None:
        after = torch.random.get_rng_state()
        torch.random.set_rng_state(state)
        definitions.append(relative_error(value, spec.evaluate(**operands)))
        torch.random.set_rng_state(after)
    return value


def widened_spec(spec: Spec) -> Spec:
    """The same node with casts to floating types that are baked in a loop's body widened to float64."""
    kernel: Kernel = spec.kernel
    if not isinstance(kernel, Loop):
        return spec
    calls = tuple(_widened_call(call) for call in kernel.body.calls)
    if calls == kernel.body.calls:
        return spec
    return dataclasses.replace(
        spec, kernel=dataclasses.replace(kernel, body=dataclasses.replace(kernel.body, calls=calls))
    )


def _widened_call(call: Call) -> Call:
    return Call(call.target, tuple(map(widened, call.args)), tuple((name, widened(v)) for name, v in call.kwargs))
