"""From a call to a variant that can be run: capture, detection, verification, code."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node

from ..capture.clone import shallow_clone
from ..capture.export import Capture, capture
from ..capture.long_loops import long_loops_refused
from ..capture.signature import Call
from ..errors import CaptureError, ItnetError, ModelError
from ..lowering.planner import apply_plan
from ..passes.engine import detect, integral_of, roll_loops
from ..passes.journal import Journal
from ..progress import Progress
from ..settings import STAGES, debug, dump
from .align import align
from .codegen import generate
from .variant import Variant

if TYPE_CHECKING:
    from .program import Program

__all__ = ["Draft", "bind", "draft", "finish", "is_virtual", "refuse_meta"]


@dataclass
class Draft:
    """A captured graph whose loops are re-rolled, on its way to becoming a variant.

    Attributes:
        capture: Its graph is rewritten on the way.
        journal: What became of its loops.
        operators: How many were captured.
        state: Of the module tree at capture.
        ambient: What else the graph depends on, at capture.
        seconds: Time taken by stage.
    """

    capture: Capture
    journal: Journal
    operators: int
    state: tuple[Any, ...]
    ambient: tuple[Any, ...]
    seconds: dict[str, float]


def draft(program: Program, call: Call, shown: Progress, *, widen: bool = True, long: bool = True) -> Draft:
    """Capture ``program.root`` at ``call`` and re-roll its loops.

    Raises:
        LongLoop: where ``long`` is false and a loop of many steps begins.
        CaptureError: where it cannot be captured.
    """
    with _faults_caught(), contextlib.nullcontext() if long else long_loops_refused():
        return _draft(program, call, shown, widen)


def finish(program: Program, call: Call, drafted: Draft, shown: Progress) -> Variant:
    """Detect and verify integrals in a draft, and write its code; not yet compared with the original.

    Raises:
        CaptureError: for a fault of ours.
    """
    with _faults_caught():
        return _finish(program, call, drafted, shown)


@contextlib.contextmanager
def _faults_caught() -> Iterator[None]:
    try:
        yield
    except ItnetError:
        raise
    except Exception as error:
        # A fault of ours must not cost the user the model.
        raise CaptureError(f"the capture failed: {type(error).__name__}: {error}") from error


def _draft(program: Program, call: Call, shown: Progress, widen: bool) -> Draft:
    root, policy = program.root, program.policy
    state, ambient = program.tree.read(), program.ambient(call)
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    shown.stage("capture" if not program.path else f"capture {program.path}")
    axes = "first" if program.axes == "all" and program.original in policy.slow else program.axes
    clone = program.face.restore(shallow_clone(root))
    # Only fast paths, and a forward that asks, make a difference between graphs for calls with and without gradients.
    grad = torch.is_grad_enabled() or not program.minds_grad(ambient)
    captured = capture(clone, call, axes=axes, widen=widen, grad=grad, prefix=program.path)
    if not captured.asks <= program.asks:
        program.asks |= captured.asks
        return _draft(program, call, shown, widen)
    if captured.axes != axes:
        policy.slow.add(program.original)
    program.axes = captured.axes
    seconds["capture"] = time.perf_counter() - start
    dump("captured", str(captured.graph))
    start = time.perf_counter()
    operators = sum(node.op == "call_function" for node in captured.graph.nodes)
    journal = roll_loops(captured.graph, verifier=policy.verifier if policy.verify else None)
    seconds["detect and verify"] = time.perf_counter() - start
    return Draft(captured, journal, operators, state, ambient, seconds)


def _finish(program: Program, call: Call, drafted: Draft, shown: Progress) -> Variant:
    policy, captured, seconds = program.policy, drafted.capture, drafted.seconds
    start = time.perf_counter()
    rolled = _copied(captured.graph) if drafted.journal.loops() else None
    journal = detect(
        captured.graph,
        verifier=policy.verifier if policy.verify else None,
        begin=lambda total: shown.stage("verify", total),
        rolled=drafted.journal,
    )
    seconds["detect and verify"] += time.perf_counter() - start
    dump("rewritten", str(captured.graph))
    variant = Variant(
        _label(program, call, captured.grad),
        call.signature,
        drafted.state,
        drafted.ambient,
        captured,
        journal,
        drafted.operators,
        rolled=rolled,
    )
    variant.seconds = seconds
    _align(program, variant)
    apply_plan(variant.integrals, [*program.careful, *program.plan_rules])
    bind(program, variant)
    for stage, took in seconds.items():
        debug(STAGES, "%s: %.2f s", stage, took)
    return variant


def _copied(graph: Graph) -> Graph:
    """A copy of a graph; fake values and integrals are shared."""
    twin = Graph()
    nodes: dict[Node, Node] = {}
    twin.output(twin.graph_copy(graph, nodes))
    for old, new in nodes.items():
        new.meta = dict(old.meta)
    return twin


def _align(program: Program, variant: Variant) -> None:
    """Say how the graph of a variant relates to that of the first one, and share the integrals that are equal."""
    alike = [other for other in program.variants if other.signature == variant.signature]
    if not alike:
        return
    variant.alignment = align(alike[0].graph, variant.graph).describe(alike[0].label)
    known = {integral.name: integral for integral in alike[0].integrals}
    for node in variant.graph.nodes:
        own = integral_of(node)
        if own is not None and own.name in known and known[own.name].spec == own.spec:
            node.meta["integral"] = known[own.name]


def bind(program: Program, variant: Variant) -> None:
    """Generate the code of a variant, with the current plan, and find the tensors that it takes."""
    captured = variant.capture
    variant.own_code = variant.journal.joined() or any(one.plan.lowering != "library" for one in variant.integrals)
    variant.generated = generate(captured.graph, captured.output, captured.constants)
    variant.stores = []
    for path in variant.generated.paths:
        spot = program.tree.locate(path.removeprefix(f"{program.path}."))
        variant.stores.append((captured.constants, path) if spot is None else spot)


def is_virtual(root: nn.Module, call: Call) -> bool:
    """Whether there is nothing to run on: meta or fake tensors."""
    tensors = [*root.parameters(), *root.buffers(), *call.leaves]
    return any(tensor.is_meta for tensor in tensors) or detect_fake_mode(tensors) is not None


def refuse_meta(root: nn.Module, call: Call) -> None:
    """Raise ``ModelError`` for real inputs to a model without values: its own error would not explain the mistake.

    Raises ``CaptureError`` where code of somebody else's (accelerate) may bring the values when they are needed.
    """
    on_meta = next((name for name, tensor in root.named_parameters() if tensor.is_meta), None)
    if on_meta is not None and not all(leaf.is_meta for leaf in call.leaves):
        if any(hasattr(module, "_hf_hook") for module in root.modules()):
            raise CaptureError("its weights are somewhere else until they are needed (accelerate)")
        raise ModelError(
            f"parameter {on_meta!r} is on the meta device: the model can be inspected but not run",
            remedy="give it values first: model.to_empty(device='cpu') and model.load_state_dict(…)",
            node=on_meta,
        )


def _label(program: Program, call: Call, grad: bool) -> str:
    mode = program.mode
    same = [v for v in program.variants if v.mode == mode and v.grad == grad]
    mode += "" if grad else " (no grad)"
    return mode if not same else f"{mode} {len(same) + 1}: {call.signature.describe()}"
