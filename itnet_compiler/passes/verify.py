"""Verification: a proposed rewrite is run against the nodes it replaces, in float64, before it is made.

Three comparisons (the errors are relative L2):

1. the matched region against the node's exact lowering, on random inputs of the real shapes;
2. the same with the symbolic sizes bound to other, mutually distinct values;
3. that lowering against the family's dense definition, at small, all-different sizes.

Results are kept by (spec, region, shapes), so that equal layers are checked once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Node
from torch.overrides import TorchFunctionMode

from ..ir.integral import Verification
from ..ir.kernel import Draw, Spec
from ..lowering.base import Lowered, default_lowering
from ..settings import NEAR_MISSES, debug
from .known import KnownCall
from .match import Proposal, op_name
from .sampling import Bindings, draw, hint, other_sizes, real_sizes, sizes_of

__all__ = ["TOLERANCE", "Verifier", "relative_error", "widened"]

TOLERANCE = 1e-12
# The definition sums in another order, and a recurrence carries its rounding errors over the steps.
DEFINITION_TOLERANCE = 1e-10
_MOST_SLOPES = 1 << 17


class Verifier:
    """Checks proposals; holds the results of earlier checks."""

    def __init__(self) -> None:
        self._results: dict[Any, Verification] = {}

    def check(self, proposal: Proposal, lowered: Lowered) -> Verification:
        """Run all three comparisons; ``status`` is ``failed`` with the reason in ``note`` where one does not hold."""
        key = _key(proposal)
        if key not in self._results:
            self._results[key] = self._check(proposal, lowered)
        return self._results[key]

    def _check(self, proposal: Proposal, lowered: Lowered) -> Verification:
        notes: list[str] = []
        errors: dict[str, float | None] = {}
        inputs = _inputs(proposal)
        for what, bindings in (("real", real_sizes(inputs)), ("other", other_sizes(inputs))):
            error, note = _compare_region(proposal, lowered, bindings)
            if error is not None and not error <= TOLERANCE:
                return Verification("failed", error, note=f"the lowering differs from the region at {what} sizes")
            errors[what] = error
            notes += [f"{what} sizes: {note}"] if note else []
        real, other = errors["real"], errors["other"]
        if real is None and other is None:
            return Verification("failed", note="the region could not be run at any size; " + "; ".join(notes))
        definition = definition_error(proposal.spec)
        if not definition <= DEFINITION_TOLERANCE:
            return Verification("failed", real, other, definition, "the lowering differs from the dense definition")
        return Verification("verified", real, other, definition, "; ".join(notes))


def relative_error(value: Any, expected: Any) -> float:
    """Relative L2 difference of two (tuples of) tensors, worst first; NaNs and infinities must agree in place."""
    if isinstance(expected, (tuple, list)):
        if not isinstance(value, (tuple, list)) or len(value) != len(expected):
            return float("inf")
        return max((relative_error(a, b) for a, b in zip(value, expected, strict=True)), default=0.0)
    if not isinstance(expected, Tensor):
        return 0.0 if value == expected else float("inf")
    if not isinstance(value, Tensor) or value.shape != expected.shape or value.dtype != expected.dtype:
        return float("inf")
    if not expected.is_floating_point() and not expected.is_complex():
        return 0.0 if torch.equal(value, expected) else float("inf")
    wide = torch.complex128 if expected.is_complex() else torch.float64
    value, expected = value.detach().to(wide), expected.detach().to(wide)
    odd = ~torch.isfinite(expected)
    if bool((odd != ~torch.isfinite(value)).any()):
        return float("inf")
    if bool(odd.any()):
        if not torch.equal(value[odd].nan_to_num(), expected[odd].nan_to_num()):
            return float("inf")
        value, expected = value[~odd], expected[~odd]
    scale = float(torch.linalg.vector_norm(expected))
    difference = float(torch.linalg.vector_norm(value - expected))
    return difference / scale if scale else difference


def definition_error(spec: Spec) -> float:
    """Exact lowering against the dense definition at the spec's miniature sizes, worst of outputs."""
    sample = spec.miniature()
    key = (sample.spec, repr(sample.draws))
    if key not in _definition_errors:
        operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
        with torch.no_grad():
            value = default_lowering(sample.spec).build(sample.spec).function(**operands)
            expected = sample.spec.evaluate(**operands)
        _definition_errors[key] = relative_error(value, expected)
    return _definition_errors[key]


# By miniature, for the life of the process: a hundred convolutions share a handful of miniatures.
_definition_errors: dict[tuple[Spec, str], float] = {}


def _key(proposal: Proposal) -> Any:
    """What two proposals must share for one check to serve both: the spec, the region's program and all shapes."""
    numbers: dict[Node, int] = {}

    def number(node: Node) -> Any:
        if node not in numbers:
            numbers[node] = len(numbers)
            return ("new", numbers[node], _value_key(node.meta.get("val")))
        return ("seen", numbers[node])

    def frozen(value: Any) -> Any:
        if isinstance(value, Node):
            return number(value)
        if isinstance(value, (list, tuple)):
            return tuple(frozen(item) for item in value)
        if isinstance(value, (slice, dict)):
            return repr(value)
        return (type(value).__name__, value)

    program = tuple(
        (_program_name(node), frozen(node.args), tuple((k, frozen(v)) for k, v in node.kwargs.items()), number(node))
        for node in proposal.region
    )
    operands = tuple((role, frozen(value)) for role, value in proposal.operands.items())
    outputs = tuple(number(node) for node in proposal.outputs)
    return proposal.spec, program, operands, outputs


def _program_name(node: Node) -> Any:
    integral = node.meta.get("integral")
    return op_name(node) if integral is None else integral.spec


def _value_key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype), tuple(str(size) for size in value.shape), tuple(hint(size) for size in value.shape))
    if isinstance(value, (list, tuple)):
        return tuple(_value_key(item) for item in value)
    return str(value)


def _inputs(proposal: Proposal) -> list[Node]:
    inside = set(proposal.region)
    return list(dict.fromkeys(s for node in proposal.region for s in node.all_input_nodes if s not in inside))


def _compare_region(proposal: Proposal, lowered: Lowered, candidates: Iterable[Bindings]) -> tuple[float | None, str]:
    """Error at the first candidate sizes at which the region itself runs; None with the reason where none does."""
    reason, tried = "", False
    for bindings in candidates:
        tried = True
        try:
            inputs = _draw_inputs(proposal, bindings)
            if inputs is None:
                reason = "not checked: too large"
                continue
            expected = _run_region(proposal, dict(inputs), bindings)
        except Exception as error:
            reason = f"not checked: the region itself does not run there ({type(error).__name__})"
            debug(NEAR_MISSES, "region of %s does not run at %s: %s", proposal.spec.origin, bindings, error)
            continue
        try:
            value = _run_lowered(proposal, lowered, inputs)
        except Exception as error:
            if not _occurs(proposal, bindings):  # the region ran there by chance: an extent of 1 was broadcast, say
                reason = f"not checked: the lowering does not run there ({type(error).__name__})"
                continue
            return float("inf"), f"the lowering raises {type(error).__name__}: {error}"
        distance = relative_error(value, expected)
        if distance <= TOLERANCE:
            distance = max(distance, _slope_error(proposal, lowered, inputs, bindings))
        return distance, ""
    return None, reason if tried else ""


def _slope_error(proposal: Proposal, lowered: Lowered, inputs: dict[Node, Any], bindings: Bindings) -> float:
    """0 where gradients agree with those of the function's own code, else infinite; 0 for regions of operators.

    Of a known function nothing is taken on trust, and a whole network of them may take too long to differentiate.
    """
    elements = sum(value.numel() for value in inputs.values() if isinstance(value, Tensor))
    if not any(isinstance(node.target, KnownCall) for node in proposal.region) or elements > _MOST_SLOPES:
        return 0.0
    slopes: list[Any] = []
    for run in (
        lambda values: _run_region(proposal, values, bindings, grad=True),
        lambda values: _run_lowered(proposal, lowered, values, grad=True),
    ):
        values, leaves = dict(inputs), []
        for node, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                values[node] = value.clone().requires_grad_()
                leaves.append(values[node])
        result = run(values)
        outputs = [out for out in (result if isinstance(result, (list, tuple)) else [result]) if out.requires_grad]
        weights = [torch.linspace(0.5, 1.5, out.numel(), dtype=out.dtype).view(out.shape) for out in outputs]
        slopes.append(list(torch.autograd.grad(outputs, leaves, weights, allow_unused=True, materialize_grads=True)))
    return 0.0 if relative_error(*slopes) <= DEFINITION_TOLERANCE else float("inf")


def _occurs(proposal: Proposal, bindings: Bindings) -> bool:
    """Whether the graph is run at these sizes, by what the exporter assumed of them."""
    numbers = {symbol: sympy.Integer(value) for symbol, value in bindings.items()}
    for environment in {size.node.shape_env for size in sizes_of(_inputs(proposal)) if isinstance(size, torch.SymInt)}:
        if any(guard.expr.xreplace(numbers) == sympy.false for guard in getattr(environment, "guards", ())):
            return False
    return True


def _draw_inputs(proposal: Proposal, bindings: Bindings) -> dict[Node, Any] | None:
    generator = torch.Generator().manual_seed(0)
    draws = {role: draw for role, draw in proposal.spec.miniature().draws.items() if isinstance(draw, Draw)}
    wanted = {
        value: draws[role] for role, value in proposal.operands.items() if role in draws and isinstance(value, Node)
    }
    drawn: dict[Node, Any] = {}
    for node in _inputs(proposal):
        value = draw(node.meta.get("val"), bindings, generator)
        if value is None:
            return None
        # Where any number but 0 masks, random numbers would leave nothing to compare.
        if node in wanted and wanted[node].kind == "mask":
            value = torch.where(value < 1.0, 0.0, -torch.inf).to(value)
        elif node in wanted and isinstance(value, Tensor) and value.is_floating_point():
            value = wanted[node].shaped(value)
        drawn[node] = value
    return drawn


def widened(value: Any) -> Any:
    """A floating dtype as float64, which casts that are baked in the source go to; anything else as it is."""
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


class _Wide(TorchFunctionMode):
    """Runs a function with its casts to narrower floating dtypes made casts to float64."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function

    def __call__(self, *args: Any) -> Any:
        """The function's result."""
        with self:
            return self._function(*args)

    def __torch_function__(self, function: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.float, Tensor.half, Tensor.bfloat16) and args[0].is_floating_point():
            return args[0].double()
        args = tuple(widened(value) for value in args)
        return function(*args, **{name: widened(value) for name, value in (kwargs or {}).items()})


def _run_region(proposal: Proposal, values: dict[Node, Any], bindings: Bindings, *, grad: bool = False) -> Any:
    """Execute the matched nodes; casts to a floating dtype that are baked in the source go to float64."""
    with torch.set_grad_enabled(grad), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for node in proposal.region:
            args = torch.fx.node.map_arg(node.args, values.__getitem__)
            kwargs = torch.fx.node.map_arg(node.kwargs, values.__getitem__)
            args = tuple(widened(value) for value in args)
            kwargs = {name: widened(value) for name, value in kwargs.items()}
            values[node] = _function(node)(*args, **kwargs)
    results = [values[node] for node in proposal.outputs]
    return results[0] if len(results) == 1 else tuple(results)


def _function(node: Node) -> Any:
    """What a node calls; an integral made before, a re-rolled loop say, by its lowering."""
    if (integral := node.meta.get("integral")) is not None:
        return integral.executable.function
    return _Wide(node.target) if isinstance(node.target, KnownCall) else node.target


def _run_lowered(proposal: Proposal, lowered: Lowered, inputs: dict[Node, Any], *, grad: bool = False) -> Any:
    operands = torch.fx.node.map_arg(dict(proposal.operands), lambda node: inputs[node])
    with torch.set_grad_enabled(grad), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lowered.function(**operands)
