"""Capture: one call of a model becomes a flat FX graph of ATen operators, through ``torch.export``.

The graph refers to parameters and buffers by their path (``get_attr``), so that it owns none; its inputs are the
tensors of the call. The model given is never traced itself, only a throw-away clone, and so stays untouched.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import time
import traceback
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from .clone import shallow_clone
from .fast_paths import open_fast_paths
from .guards import ShapeGuards
from .leaves import leaves_installed, restore_leaves
from .losses import no_custom_gradients, no_foreign_randomness, refuse_hooks
from .signature import Call

__all__ = ["Capture", "capture"]

_TORCH = str(Path(torch.__file__).parent)


@dataclass
class Capture:
    """One captured call.

    Attributes:
        graph: Flat ATen graph. Placeholders are the call's tensors in order; ``get_attr`` targets are paths of
            parameters, buffers and tensor attributes of the model, or keys of ``constants``.
        constants: Tensors and sub-graphs that exist only in the capture.
        guards: Input sizes for which the graph is valid.
        output: Structure of the model's return value; its leaves are the graph's outputs.
        axes: Which axes were given as symbolic (see ``capture``); ``first`` where ``all`` failed or took too long.
        grad: Whether gradients were enabled.
        notes: What is special about this capture, in words for the report.
        refused: Why the graph may be looked at but not run; empty where it may.
    """

    graph: Graph
    constants: dict[str, Any]
    guards: ShapeGuards
    output: pytree.TreeSpec
    axes: str = "all"
    grad: bool = True
    notes: list[str] = field(default_factory=list)
    refused: str = ""


def capture(model: nn.Module, call: Call, *, axes: str = "all", widen: bool = True, grad: bool = True) -> Capture:
    """Trace ``model`` at ``call`` in its current mode.

    Args:
        model: Any module; its classes' own ``forward`` is traced.
        call: The call in normal form; real or meta tensors.
        axes: Which axes of the inputs stay symbolic where possible: ``all``, only the ``first``, or ``none``.
        widen: Whether a batch of 0 or 1 is traced as a batch of 2, to keep it symbolic.
        grad: Whether gradients are enabled while tracing.

    Raises:
        CaptureError: where ``torch.export`` fails or the result would lose something.
    """
    refuse_hooks(model)
    failure: Exception | None = None
    too_slow = False
    for example, chosen, note in _attempts(call, axes, widen):
        try:
            program, nested = _export(model, example, chosen, grad)
        except _OutOfTime:
            too_slow = True
            continue
        except Exception as error:
            failure = failure or error
            continue
        result = _flatten(program, _first_names(model))
        result.axes, result.grad = chosen, grad
        if nested:
            result.refused = (
                f"is not used for {nested[0]}: without gradients nn.TransformerEncoder zeroes padded positions "
                "(pass enable_nested_tensor=False to it)"
            )
        if chosen != axes:
            why = "takes too long" if too_slow else "fails"
            result.notes.append(f"sizes other than the batch are fixed in each graph: tracing them symbolically {why}")
        result.notes += [note] if note else []
        return result
    assert failure is not None
    if isinstance(failure, CaptureError):
        raise failure
    raise _capture_error(failure) from failure


def _attempts(call: Call, axes: str, widen: bool) -> Iterator[tuple[Call, str, str]]:
    """What to try in turn: example, which axes are symbolic, and what to say of the result."""
    wide = _widen_batch(call) if widen and axes != "none" else call
    yield wide, axes, ""
    if axes == "all":
        yield wide, "first", ""
    if wide is not call:
        yield call, axes, "the batch size is fixed: the model cannot be captured at another than the example's"


def _widen_batch(call: Call) -> Call:
    """The call with a leading size of 0 or 1 shared by all tensors made 2, since torch.export specialises 0 and 1."""
    sized = [leaf for leaf in call.leaves if leaf.dim()]
    if not sized or any(leaf.shape[0] > 1 for leaf in sized):
        return call

    def widen(value: Tensor) -> Tensor:
        if value.shape[0] == 1:
            return torch.cat([value, value]).requires_grad_(value.requires_grad)
        return value.new_zeros((2, *value.shape[1:]))

    # One tensor given twice stays one tensor.
    with torch.no_grad():
        wide = {id(leaf): widen(leaf) for leaf in sized}
    args, kwargs = pytree.tree_map(lambda value: wide.get(id(value), value), (call.args, call.kwargs))
    leaves = [wide.get(id(leaf), leaf) for leaf in call.leaves]
    return Call(call.signature, leaves, args, kwargs)


def _export(model: nn.Module, call: Call, axes: str, grad: bool) -> tuple[ExportedProgram, list[str]]:
    shapes: Any = None
    if axes != "none":
        shapes = ShapesCollection()
        for leaf in call.leaves:
            shapes[leaf] = dict.fromkeys(range(leaf.dim() if axes == "all" else min(leaf.dim(), 1)), Dim.AUTO)
    throwaway = shallow_clone(model)
    for hooks in (throwaway._forward_hooks, throwaway._forward_pre_hooks):
        hooks.clear()  # those of the root run around the graph
    _name_extra_arguments(throwaway, call)
    nested = open_fast_paths(throwaway)
    if axes == "all":
        _stop_after(throwaway, _PATIENCE)
    # The grad mode comes last: inference_mode sets it too.
    mode = torch.enable_grad() if grad else torch.no_grad()
    with (
        _quiet(),
        no_foreign_randomness(),
        no_custom_gradients(),
        leaves_installed(),
        torch.inference_mode(False),
        mode,
    ):
        program = torch.export.export(throwaway, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
    return program, nested


def _name_extra_arguments(throwaway: nn.Module, call: Call) -> None:
    """Give tensors passed through ``**kwargs`` parameters of their own, or torch.export cannot make them symbolic."""
    original = type(throwaway)
    signature = inspect.signature(original.forward)
    known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    extra = [name for name in call.kwargs if name not in {p.name for p in known}]
    if not extra or "forward" in throwaway.__dict__:
        return

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return original.forward(self, *args, **kwargs)

    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in extra]
    forward.__signature__ = signature.replace(parameters=[*known, *named])  # type: ignore[attr-defined]
    throwaway.__class__ = types.new_class(
        original.__name__, (original,), exec_body=lambda body: body.update(forward=forward)
    )


# Seconds of tracing with all sizes symbolic. Padded and shifted windows (Swin) make the algebra of sizes explode.
_PATIENCE = 20.0


class _OutOfTime(Exception):
    """Tracing took longer than ``_PATIENCE``."""


def _stop_after(throwaway: nn.Module, seconds: float) -> None:
    """Make every module of a throw-away clone give up once the time has passed."""
    deadline = time.monotonic() + seconds

    def check(*_: Any) -> None:
        if time.monotonic() > deadline:
            raise _OutOfTime

    # Within an encoder layer a hook would shut its fast path.
    layers = [module for module in throwaway.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    spared = {module for layer in layers for module in layer.modules()}
    for module in throwaway.modules():
        if module not in spared:
            module.register_forward_pre_hook(check)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's own chatter; failures are reported by us."""
    loggers = [logging.getLogger(name) for name in ("torch._export", "torch.export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _capture_error(error: Exception) -> CaptureError:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_TORCH, "<"))]
    user = [frame for frame in frames if "itnet_compiler" not in frame.filename]
    line = f"{user[-1].filename}:{user[-1].lineno}" if user else None
    text = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
    return CaptureError(
        f"torch.export cannot capture this model whole: {type(error).__name__}: {text.strip()[:300]}",
        remedy=_remedy(str(error)),
        source_line=line,
    )


def _remedy(text: str) -> str:
    if "Cache" in text or "unsupported type" in text or "unregistered" in text.lower():
        return "return only tensors and containers of them; with transformers set model.config.use_cache = False"
    if "data-dependent" in text or "DataDependent" in text or "unbacked" in text:
        return "forward branches on the value of a tensor; unify the submodules on either side of that branch"
    return "unify the largest submodules that torch.export accepts"


def _flatten(program: ExportedProgram, names: dict[int, str]) -> Capture:
    """The exported program as a graph of our own, with lifted inputs turned back into ``get_attr``."""
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the graph returns a {spec.kind.name.lower().replace('_', ' ')}, which is not supported"
            )
    restore_leaves(program.graph_module)
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    source, graph = program.graph_module.graph, Graph()
    constants: dict[str, Any] = {}
    copies: dict[Node, Any] = {}
    inputs: list[Node] = []
    for node in source.nodes:
        spec = kinds.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind is not InputKind.USER_INPUT:
            path = names.get(id(program.state_dict.get(str(spec.target))), str(spec.target))
            copies[node] = twin = graph.create_node("get_attr", path, name=path.replace(".", "_"))
            twin.meta = dict(node.meta)
            if spec.kind in (InputKind.CONSTANT_TENSOR, InputKind.CUSTOM_OBJ):
                constants[str(spec.target)] = program.constants[str(spec.target)]
            continue
        if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor):
            copies[node] = node.meta.get("val")  # a literal argument: specialised, and part of the signature
            continue
        if node.op == "get_attr":
            constants[node.target] = getattr(program.graph_module, node.target)
        if node.op == "call_function" and str(node.target) == "aten._assert_tensor_metadata.default":
            continue  # dtype and device are part of the signature
        if node.op == "output":
            continue
        copies[node] = twin = graph.node_copy(node, lambda old: copies[old])
        twin.meta = dict(node.meta)
        if node.op == "placeholder":
            inputs.append(twin)
    outputs = next(node for node in source.nodes if node.op == "output")
    graph.output(torch.fx.node.map_arg(outputs.args[0], lambda old: copies[old]))
    _drop_dead_nodes(graph)
    guards = ShapeGuards([node.meta["val"] for node in inputs])
    return Capture(graph, constants, guards, program.call_spec.out_spec)


def _first_names(model: nn.Module) -> dict[int, str]:
    """The first name of every parameter and buffer; a tied one has several."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {id(tensor): name for name, tensor in reversed(tensors)}


def _drop_dead_nodes(graph: Graph) -> None:
    def keep(node: Node) -> bool:
        if node.op in ("placeholder", "output"):
            return True
        if node.op == "get_attr":
            return False
        target = node.target
        if isinstance(target, torch._ops.OpOverload):
            return (
                target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags or "assert" in str(target)
            )
        return getattr(target, "__module__", "") not in ("_operator", "math", "torch", "torch.utils._sympy.functions")

    graph.eliminate_dead_code(is_impure_node=keep)
