"""Traces a pair function, written in plain torch for one pair of positions, into a program: once for all pairs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx import traceback as fx_traceback
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ...errors import KernelError
from .aten import OPERATORS, Number, Refusal
from .builder import Builder
from .program import QUERY, SHARED, SOURCE, Program, Shape, without_dead_values

__all__ = ["POSITIONAL", "Traced", "trace"]

# What a pair function takes by position, and the side that it is of.
POSITIONAL = (("pos_q", QUERY), ("pos_k", SOURCE), ("feat_q", QUERY), ("feat_k", SOURCE))

_OURS = (str(Path(torch.__file__).parent), str(Path(__file__)))
_LINE = "itnet_source_line"
# Tensors made on the spot, always the same.
_FACTORIES = {f"aten.{name}" for name in ("zeros.default", "ones.default", "full.default", "arange.default")}
_FACTORIES |= {"aten.arange.start", "aten.arange.start_step", "aten.eye.default", "aten.linspace.default"}


@dataclass(frozen=True)
class Traced:
    """A traced pair function.

    Attributes:
        program: One output, of shape (heads,) or (). Inputs are those of ``POSITIONAL`` that it uses, ``params_0`` …
            for the tensors in ``params`` in the order of the tree's leaves, and ``captured_0`` …
        text: The program's text.
        captured: Tensors that the function takes from its surroundings, the very objects.
        lines: ``file.py:12`` of each operator that was traced, in order, for messages.
    """

    program: Program
    text: str
    captured: tuple[Tensor, ...]
    lines: tuple[str, ...]


def trace(function: Callable[..., Any], shapes: Sequence[Shape | None], params: Any) -> Traced:
    """Trace ``function(pos_q, pos_k, feat_q, feat_k, params=params)``.

    Args:
        function: In plain torch, for one pair; returns a tensor of shape (heads,) or ().
        shapes: Of the four positional arguments for one pair; None is passed as None.
        params: Tensors in any nesting, or None, in which case the function is called without ``params``.

    Raises:
        KernelError: where the function does what a pair function cannot do, with its source line and what to write.
    """
    leaves, tree = pytree.tree_flatten({} if params is None else params)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise KernelError(
            "params holds something that is no tensor", remedy="keep numbers in the function or in default arguments"
        )
    graph = _graph(function, shapes, leaves, tree, params is not None)
    return _Reader(graph, shapes, leaves).read()


def _graph(
    function: Callable[..., Any],
    shapes: Sequence[Shape | None],
    leaves: Sequence[Tensor],
    tree: pytree.TreeSpec,
    with_params: bool,
) -> GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx  # loads half of torch's compilers

    given = [shape for shape in shapes if shape is not None]

    def call(*tensors: Tensor) -> Tensor:
        firsts = iter(tensors[: len(given)])
        positional = [None if shape is None else next(firsts) for shape in shapes]
        keywords = {"params": pytree.tree_unflatten(tensors[len(given) :], tree)} if with_params else {}
        with _Lines():
            result = function(*positional, **keywords)
        if not isinstance(result, Tensor):
            raise KernelError(
                f"the kernel function returns {type(result).__name__}, not a tensor of one number a head",
                source_line=_definition(function),
            )
        return result

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fakes = [torch.empty(shape) for shape in given]
        fakes += [mode.from_tensor(leaf.detach()).to("cpu", torch.float32) for leaf in leaves]
    try:
        with fx_traceback.preserve_node_meta(), torch.no_grad(), _quiet():
            return make_fx(call, tracing_mode="fake", _allow_non_fake_inputs=True)(*fakes)
    except KernelError:
        raise
    except Exception as error:
        raise _explained(function, error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log the errors that they raise; they are told to the user here."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


class _Lines(TorchFunctionMode):
    """Notes the source line of every operator; stops before one is written to, which may be the user's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        line, name = _user_line(sys._getframe(1)), getattr(func, "__name__", "")
        if _writes(name) or (kwargs or {}).get("out") is not None:
            raise KernelError(
                f"the kernel function writes into a tensor ({name}), which every pair would do again",
                remedy="make a new tensor: x = x + y for x += y, torch.stack or torch.cat for x[0] = y",
                source_line=line or None,
            )
        with fx_traceback.annotate({_LINE: line}):
            return func(*args, **(kwargs or {}))


def _writes(name: str) -> bool:
    """Whether a function of torch of this name changes its first argument: ``add_``, ``__setitem__``, ``__iadd__``."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name.strip("_")[1:] in _ARITHMETIC)
    return name.endswith("_") and name != "requires_grad_"


_ARITHMETIC = set("add sub mul truediv floordiv div mod pow and or xor lshift rshift matmul".split())


def _user_line(frame: FrameType | None) -> str:
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame is not None else ""


def _definition(function: Callable[..., Any]) -> str | None:
    code = getattr(function, "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else None


def _explained(function: Callable[..., Any], error: Exception) -> KernelError:
    """The error of a trace, at the user's line, with a remedy where one is known."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OURS)]
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else _definition(function)
    name = type(error).__name__
    if name in ("GuardOnDataDependentSymNode", "DataDependentOutputException", "UnsupportedFakeTensorException"):
        return KernelError(
            "the kernel function decides by the value of a tensor, which differs from pair to pair",
            remedy="write torch.where(condition, a, b)",
            source_line=where,
        )
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return KernelError(
        f"the kernel function does not run on one pair: {name}: {text}",
        remedy="it takes pos_q (P,), pos_k (P,), feat_q (C,), feat_k (C,) and returns one number a head",
        source_line=where,
    )


class _Reader:
    """From the FX graph of ATen operators to a program."""

    def __init__(self, graph: GraphModule, shapes: Sequence[Shape | None], leaves: Sequence[Tensor]) -> None:
        self.graph, self.b = graph, Builder()
        self.known: dict[Node, Any] = {}
        self.captured: list[Tensor] = []
        self.lines: list[str] = []
        self.placeholders = self._inputs(shapes, leaves)

    def _inputs(self, shapes: Sequence[Shape | None], leaves: Sequence[Tensor]) -> Iterator[int]:
        for (name, side), shape in zip(POSITIONAL, shapes, strict=True):
            if shape is not None:
                yield self.b.input(name, side, tuple(shape))
        for place, leaf in enumerate(leaves):
            yield self.b.input(f"params_{place}", SHARED, tuple(leaf.shape))

    def read(self) -> Traced:
        for node in self.graph.graph.nodes:
            if node.op == "placeholder":
                self.known[node] = Number(next(self.placeholders))
            elif node.op == "get_attr":
                self.known[node] = Number(self._keep(getattr(self.graph, str(node.target))))
            elif node.op == "call_function":
                self.known[node] = self._call(node)
            elif node.op == "output":
                result = self.known[pytree.tree_leaves(node.args[0])[0]]
        program = without_dead_values(self.b.program([int(result)]))
        if len(self.b.shape(int(result))) > 1:
            raise KernelError(
                f"the kernel function returns shape {self.b.shape(int(result))} for one pair",
                remedy="return one number a head, shape (heads,)",
                source_line=self.lines[-1] if self.lines else None,
            )
        return Traced(program, str(program), tuple(self.captured), tuple(self.lines))

    def _as_value(self, x: Any, kind: Any) -> Any:
        """A Python number that stands where the operator takes a tensor is a constant, and no number of a value."""
        plain = isinstance(x, (bool, int, float)) and not isinstance(x, Number)
        return Number(self.b.constant(float(x))) if plain and isinstance(kind, torch.TensorType) else x

    def _keep(self, tensor: Tensor) -> int:
        """A captured tensor as an input, the same one for the same tensor."""
        places = [place for place, known in enumerate(self.captured) if known is tensor]
        if not places:
            places = [len(self.captured)]
            self.captured.append(tensor)
        return self.b.input(f"captured_{places[0]}", SHARED, tuple(tensor.shape))

    def _call(self, node: Node) -> Any:
        line = (node.meta.get("custom") or {}).get(_LINE, "")
        self.lines.append(line)
        if str(node.target) in _FACTORIES and not node.all_input_nodes:
            return Number(self._keep(node.target(*node.args, **node.kwargs)))  # type: ignore[operator]
        rule = OPERATORS.get(str(node.target))
        if rule is None:
            seeded = torch.Tag.nondeterministic_seeded
            random = any(seeded in getattr(near.target, "tags", ()) for near in (node, *node.users))
            raise KernelError(
                f"{node.target} is no operator that a kernel function can use",
                remedy="draw random numbers outside and give them in params"
                if random
                else "write it with arithmetic, elementary functions, linear maps, sums, views and torch.where",
                source_line=line or None,
            )
        args, kwargs = pytree.tree_map(lambda x: self.known[x] if isinstance(x, Node) else x, (node.args, node.kwargs))
        schema = getattr(node.target, "_schema", None)
        kinds = [] if schema is None else [argument.type for argument in schema.arguments]
        args = [self._as_value(x, kind) for x, kind in itertools.zip_longest(args, kinds[: len(args)])]
        try:
            return pytree.tree_map(lambda x: None if x is None else Number(x), rule(self.b, *args, **kwargs))
        except (Refusal, ValueError, TypeError, KeyError) as error:
            raise KernelError(
                f"{node.target} cannot be used like this in a kernel function: {error}", source_line=line or None
            ) from error
