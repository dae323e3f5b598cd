"""Capture: one call of a model becomes a flat FX graph of ATen operators, through ``torch.export``.

The graph refers to parameters and buffers by their path (``get_attr``), so that it owns none; its inputs are the
tensors of the call. The model given is never traced itself, only a throw-away clone, and so stays untouched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import operator
import re
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from ..errors import CaptureError
from ..passes.effects import written_arguments
from .belongings import Belongings, contents_kept
from .fast_paths import open_fast_paths
from .guards import ShapeGuards
from .hooks import refuse_hooks
from .leaves import leaves_installed, restore_leaves
from .losses import nothing_lost
from .patience import PATIENCE, OutOfTime, limited
from .questions import questions_noted
from .regions import inline_regions, modes_recorded
from .signature import Call, map_arguments
from .throwaway import StateWritten, open_records, plain_sizes, throwaway_clone, watch_belongings
from .written import LookedAt, Write, make_inputs

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
        output: Structure of the model's return value; its leaves are the graph's first outputs.
        writes: Attributes that are written; the leaves of what is written follow.
        axes: Which axes were given as symbolic (see ``capture``); ``first`` where ``all`` failed or took too long.
        grad: Whether gradients were enabled.
        asks: What else forward asks of its surroundings in Python (see ``questions``).
        notes: What is special about this capture, in words for the report.
        refused: Why the graph may be looked at but not run; empty where it may.
    """

    graph: Graph
    constants: dict[str, Any]
    guards: ShapeGuards
    output: pytree.TreeSpec
    writes: tuple[Write, ...] = ()
    axes: str = "all"
    grad: bool = True
    asks: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    refused: str = ""


def capture(
    model: nn.Module, call: Call, *, axes: str = "all", widen: bool = True, grad: bool = True, prefix: str = ""
) -> Capture:
    """Trace ``model`` at ``call`` in its current mode.

    Args:
        model: Any module; its classes' own ``forward`` is traced.
        call: The call in normal form; real or meta tensors.
        axes: Which axes of the inputs stay symbolic where possible: ``all``, only the ``first``, or ``none``.
        widen: Whether a batch of 0 or 1 is traced as a batch of 2, to keep it symbolic.
        grad: Whether gradients are enabled while tracing.
        prefix: Path of ``model`` in a larger one, put in front of all module paths of the graph.

    Raises:
        StateWritten: where forward writes attributes of modules.
        CaptureError: where ``torch.export`` fails or the result would lose something.
    """
    refuse_hooks(model)
    failure: Exception | None = None
    too_slow = False
    for example, chosen, note in _attempts(call, axes, widen):
        try:
            with questions_noted() as asked:
                program, nested, writes = _export_written(model, example, chosen, grad)
        except OutOfTime:
            too_slow = True
            continue
        except Exception as error:
            failure = failure or error
            if not _is_about_sizes(error):
                break
            continue
        result = _flatten(program, _first_names(model), writes)
        _refuse_hidden_state(model, result)
        _put_under(prefix, result)
        result.axes, result.grad, result.asks = chosen, grad, asked
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
        failure.source_line = failure.source_line or _line(failure)
        problem: Exception = failure
    else:
        problem = _capture_error(failure)
    # No cause, no traceback: their frames would keep the tensors of the call alive.
    problem.__traceback__, failure = None, None
    raise problem


# What an error names that sizes of inputs have to do with: a symbol, the type of symbols, words of the exporter or of
# its solver.
_SIZES = re.compile(r"\bs\d+\b|Sym(Int|Bool|Float)|(?i:symbolic|dynamic|constraint|speciali|shape|size|inequality)")


def _is_about_sizes(error: Exception) -> bool:
    """Whether capturing again with fewer symbolic sizes, or another batch size, may help."""
    if isinstance(error, (CaptureError, GuardOnDataDependentSymNode)):
        return False
    return _SIZES.search(f"{type(error).__name__} {error}") is not None


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
    args, kwargs = map_arguments(lambda value: wide.get(id(value), value), (call.args, call.kwargs))
    leaves = [wide.get(id(leaf), leaf) for leaf in call.leaves]
    return Call(call.signature, leaves, args, kwargs)


def _export_written(
    model: nn.Module, call: Call, axes: str, grad: bool
) -> tuple[ExportedProgram, list[str], tuple[Write, ...]]:
    """The program, which nested tensors it would make, and the attributes that it writes."""
    try:
        return (*_export(model, call, axes, grad, ()), ())
    except StateWritten as error:
        if not error.writes:
            raise
        try:
            return (*_export(model, call, axes, grad, error.writes), error.writes)
        except (Exception, LookedAt):
            raise error from None


def _export(
    model: nn.Module, call: Call, axes: str, grad: bool, writes: tuple[Write, ...]
) -> tuple[ExportedProgram, list[str]]:
    shapes: Any = None
    if axes != "none" and call.leaves:
        shapes = ShapesCollection()
        for leaf in call.leaves:
            shapes[leaf] = dict.fromkeys(range(leaf.dim() if axes == "all" else min(leaf.dim(), 1)), Dim.AUTO)
    throwaway = throwaway_clone(model, call)
    nested = open_fast_paths(throwaway)
    make_inputs(throwaway, writes)
    watch_belongings(throwaway, writes)
    args, kwargs = plain_sizes(throwaway, call)
    open_records(throwaway)
    # The grad mode comes last: inference_mode sets it too.
    mode = torch.enable_grad() if grad else torch.no_grad()
    with (
        _quiet(),
        nothing_lost() as kept,
        leaves_installed(),
        limited(PATIENCE if axes == "all" else None),
        # The exporter writes tensors that are not registered for real.
        contents_kept(Belongings(model).tensors.values()),
        torch.inference_mode(False),
        mode,
        modes_recorded(),
    ):
        program = torch.export.export(throwaway, args, kwargs, dynamic_shapes=shapes, strict=False)
        kept.restore(program.graph_module)
    return program, nested


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's own chatter; failures are reported by us."""
    chatty = ("torch._export", "torch.export", "torch.fx")
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith(chatty)]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        # On a failure it prints the whole graph.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _line(error: Exception) -> str | None:
    """The innermost line of the user's own code that led to ``error``."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_TORCH, "<"))]
    user = [frame for frame in frames if "itnet_compiler" not in frame.filename]
    return f"{user[-1].filename}:{user[-1].lineno}" if user else None


def _capture_error(error: Exception) -> CaptureError:
    text = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__).strip()
    known = next((known for known in _KNOWN if re.search(known[0], str(error))), None)
    if known is not None:
        return CaptureError(known[1], remedy=known[2], source_line=_line(error))
    return CaptureError(
        f"torch.export cannot take it: {type(error).__name__}: {text[:300]}",
        source_line=_line(error),
    )


# Text of an exporter's error, what it means, what can be done.
_KNOWN = (
    (
        r"data-dependent|DataDependent|\bu\d+\b|unbacked|_local_scalar_dense",
        "forward branches on, or takes a size from, the value of a tensor",
        "keep such decisions outside the modules that are to be captured",
    ),
    (
        r"(?i)unsupported type|unregistered|is an instance of .*not.*pytree|Found <class .* in output",
        "forward returns an object that is no container of tensors and cannot be taken apart",
        "return tensors, plain values, containers or dataclasses of them",
    ),
)


def _flatten(program: ExportedProgram, names: dict[int, str], writes: tuple[Write, ...]) -> Capture:
    """The exported program as a graph of our own, with lifted inputs turned back into ``get_attr``."""
    for spec in program.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise CaptureError(
                f"the graph returns a {spec.kind.name.lower().replace('_', ' ')}, which is not supported"
            )
    restore_leaves(program.graph_module)
    inline_regions(program.graph_module)
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
            constants[node.target] = operator.attrgetter(node.target)(program.graph_module)
        if node.op == "call_function" and str(node.target) == "aten._assert_tensor_metadata.default":
            continue  # dtype and device are part of the signature
        if node.op == "output":
            continue
        copies[node] = twin = graph.node_copy(node, lambda old: copies[old])
        twin.meta = dict(node.meta)
        if isinstance(held := constants.get(str(node.target)) if node.op == "get_attr" else None, GraphModule):
            twin.meta["graph_module"] = held
        if node.op == "placeholder":
            inputs.append(twin)
    outputs = next(node for node in source.nodes if node.op == "output")
    graph.output(torch.fx.node.map_arg(outputs.args[0], lambda old: copies[old]))
    _drop_dead_nodes(graph)
    guards = ShapeGuards([node.meta["val"] for node in inputs])
    output = program.call_spec.out_spec
    if writes:
        output, written = output.children()
        pairs = zip(writes, written.children(), strict=True)
        writes = tuple(dataclasses.replace(write, structure=structure) for write, structure in pairs)
    return Capture(graph, constants, guards, output, writes)


def _refuse_hidden_state(model: nn.Module, captured: Capture) -> None:
    """A tensor that is no attribute of any module of the tree is a constant to the graph: it must not change."""
    known = {f"{path}.{name}".lstrip(".") for path, module in model.named_modules() for name in module.__dict__}
    known |= {name for name, _ in (*model.named_parameters(), *model.named_buffers(remove_duplicate=False))}
    for node in captured.graph.nodes:
        value = captured.constants.get(str(node.target)) if node.op == "get_attr" else None
        if not isinstance(value, Tensor) or str(node.target) in known:
            continue
        if value.requires_grad or any(node in written_arguments(user) for user in node.users):
            what = "needs a gradient" if value.requires_grad else "is written"
            raise CaptureError(
                f"forward uses a tensor of shape {tuple(value.shape)} that {what} but is in no registered module",
                remedy="keep modules in nn.ModuleList or nn.ModuleDict, parameters as attributes",
            )


def _put_under(prefix: str, captured: Capture) -> None:
    """Name everything in a capture as seen from the larger model in which the module has the path ``prefix``."""
    if not prefix:
        return
    captured.constants = {f"{prefix}.{path}": value for path, value in captured.constants.items()}
    for node in captured.graph.nodes:
        if node.op == "get_attr":
            node.target = f"{prefix}.{node.target}"
        if stack := node.meta.get("nn_module_stack"):
            paths = {key: (path.removeprefix("L['self']").lstrip("."), kind) for key, (path, kind) in stack.items()}
            stack = {key: (f"{prefix}.{path}".rstrip("."), kind) for key, (path, kind) in paths.items()}
            node.meta["nn_module_stack"] = stack


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
            random = torch.Tag.nondeterministic_seeded in target.tags
            return bool(written_arguments(node)) or random or "assert" in str(target)
        return getattr(target, "__module__", "") not in ("_operator", "math", "torch", "torch.utils._sympy.functions")

    graph.eliminate_dead_code(is_impure_node=keep)
