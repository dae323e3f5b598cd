"""A trial: the original code and a captured graph run side by side on one call, leaving no trace."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture.belongings import Belongings, contents_kept, is_identical
from ..capture.clone import shallow_clone
from ..capture.losses import foreign_randomness_kept
from ..capture.records import contents
from ..capture.signature import map_arguments
from ..passes.verify import relative_error
from .gradients import Gradients, slope_error

__all__ = ["Trial", "copied", "run_trial", "unrecorded", "untouched"]

# Relative L2 between two correct evaluations in different order; beyond it the functions differ.
_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
# The same of gradients as one vector: backward passes cancel, and what is looked for is another function.
_GRADIENT_BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-2, torch.bfloat16: 0.3, torch.float16: 0.3}
# A difference beyond which it is asked whether the graph is as near to the exact result as the original is.
_ASKED = {torch.float32: 5e-6}
# Bytes of parameters up to which gradients are compared too: two sets of them are held. The second is for graphs that
# are known to round otherwise.
_GRADIENTS, _MORE_GRADIENTS = 64 * 2**20, 256 * 2**20


@dataclass(frozen=True)
class Trial:
    """Outcome of one trial.

    Attributes:
        error: Relative L2 difference of outputs and of the buffers written, worst first; 0.0 where bit-equal.
        equal: Whether all differences are within rounding, or within the original's own between two runs.
        own_error: The original against itself with the same seed; 0.0 unless it is not deterministic.
        gradient_error: Relative L2 difference of all gradients as one vector; None where not compared.
        gradient_note: Why gradients were not compared.
        written: Attributes that the original writes when it is run, though not when it is traced.
        faithful: Whether the graph is as near to a run in float64 as the original (promise 1); None where the two
            differ by too little to ask, or that cannot be decided.
    """

    error: float
    equal: bool
    own_error: float = 0.0
    gradient_error: float | None = None
    gradient_note: str = ""
    written: tuple[str, ...] = ()
    faithful: bool | None = None

    def describe(self) -> str:
        """One sentence for the report."""
        if self.written:
            return f"does not write {self.written[0]}, as the original does when it is not being traced"
        if not self.equal and self.gradient_error is not None and self.gradient_error > self.error:
            return f"has gradients that differ from the original's by {self.gradient_error:.1e}"
        if not self.equal:
            return (
                f"differs from the original by {self.error:.1e}, which is deterministic: "
                "it seems to take another branch while it is traced"
            )
        if self.own_error:
            return (
                f"the original differs from itself by {self.own_error:.1e} (same seed); the graph by {self.error:.1e}"
            )
        text = "outputs bit-equal to the original's" if self.error == 0 else f"outputs within {self.error:.1e}"
        if self.gradient_error is not None:
            same = "bit-equal" if self.gradient_error == 0 else f"within {self.gradient_error:.1e}"
            text += f", gradients {same}"
        return f"{text}; gradients not compared: {self.gradient_note}" if self.gradient_note else text


def run_trial(
    root: nn.Module,
    original: Callable[..., Any],
    graph: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    gradients: bool = False,
    code: Callable[..., Any] | None = None,
    strict: bool = False,
    sketched: bool = False,
) -> Trial:
    """Compare ``original(*args, **kwargs)`` with ``graph(...)`` under one seed, and put everything back.

    Two results that differ by more than rounding are equal still where the graph's is as near as the original's to
    that of a run in float64: some functions (softmax of scores of a billion) magnify rounding.

    Args:
        root: The module whose buffers, small parameters and attributes are put back.
        original: The code to compare with.
        graph: What is to be compared.
        args: Positional arguments; copies of their tensors are given to both.
        kwargs: Keyword arguments, likewise.
        gradients: Whether gradients are compared too, where that is affordable and gradients are enabled.
        code: ``original`` as a function of the module first; given where a run in float64 may decide.
        strict: Whether such a run is asked about differences within the bounds too, down to a few roundings.
        sketched: Whether gradients that are too large to be held are compared by projections of them.
    """
    limit = _MORE_GRADIENTS if strict else _GRADIENTS
    wanted = None
    if gradients and torch.is_grad_enabled():
        wanted = Gradients(root, limit, sketched=sketched, patient=strict)
    expected, slopes, attributes = _observe(root, original, args, kwargs, wanted)
    value, found, written_by_graph = _observe(root, graph, args, kwargs, wanted)
    written = tuple(name for name in attributes if name not in written_by_graph)
    leaves = [leaf for leaf in expected if isinstance(leaf, Tensor)]
    bound = max((_BOUNDS.get(leaf.dtype, 0.0) for leaf in leaves), default=0.0)
    error = relative_error(value, expected)
    note = wanted.note if wanted is not None else ""
    slope = None
    if slopes is not None and found is not None:
        slope = slope_error(found, slopes)
    elif not note and (slopes is None) != (found is None):
        slope = float("inf")  # one has gradients, the other none
    steepest = max((_GRADIENT_BOUNDS.get(leaf.dtype, 0.0) for leaf in leaves), default=0.0)
    asked = max((_ASKED.get(leaf.dtype, float("inf")) for leaf in leaves), default=float("inf"))
    within = error <= bound and (slope is None or slope <= steepest)
    if within and not (strict and max(error, slope or 0.0) > asked):
        return Trial(error, not written, 0.0, slope, note, written)
    again, slopes_again, _ = _observe(root, original, args, kwargs, wanted)
    own = relative_error(again, expected)
    if slope is not None and slopes is not None and slopes_again is not None:
        own = max(own, slope_error(slopes_again, slopes))
    faithful = None
    if own <= (asked if within else bound) and not written and code is not None:
        faithful = _is_as_exact(root, code, args, kwargs, graph=(value, found), plain=(expected, slopes), limit=limit)
    equal = own > bound or (within and not written) or faithful is True
    return Trial(error, equal, own, slope, note, written, faithful)


Run = tuple[list[Any], "list[Tensor | None] | None"]
# What is allowed beside twice the original's own error (promise 1).
_SLACK = {torch.float32: 1e-6, torch.bfloat16: 1e-3, torch.float16: 1e-3}


def _is_as_exact(
    root: nn.Module,
    code: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    graph: Run,
    plain: Run,
    limit: int,
) -> bool | None:
    """Whether the graph is as near to a run of the original in float64 as the original itself is.

    None where there is nothing to decide by: more than ``limit`` bytes, other random numbers, no run in float64.
    """
    if sum(t.numel() * t.element_size() for t in (*root.parameters(), *root.buffers())) > limit:
        return None
    wide = _widened(root)
    try:
        args, kwargs = map_arguments(_wide, (args, kwargs))
        wanted = Gradients(wide, 2 * limit, patient=True) if plain[1] is not None else None
        with _Draws() as draws:
            exact, slopes, _ = _observe(wide, lambda *a, **k: code(wide, *a, **k), args, kwargs, wanted)
        if draws.found:
            return None
        slack = max((_SLACK.get(leaf.dtype, 0.0) for leaf in plain[0] if isinstance(leaf, Tensor)), default=0.0)
        if not _nearness(graph[0], exact) <= 2 * _nearness(plain[0], exact) + slack:
            return False
        if plain[1] is None or graph[1] is None:
            return plain[1] is None and graph[1] is None
        if slopes is None:
            return None
        own = slope_error(_all_wide(plain[1]), slopes)
        return slope_error(_all_wide(graph[1]), slopes) <= 2 * own + slack
    except Exception:  # a float32 constant in the code, say
        return None


class _Draws(TorchDispatchMode):
    """Notes whether an operator draws random numbers."""

    found = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found = self.found or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _all_wide(values: list[Any]) -> list[Any]:
    return [_wide(value) for value in values]


def _nearness(values: list[Any], exact: list[Any]) -> float:
    return relative_error(_all_wide(values), _all_wide(exact))


def _widened(root: nn.Module) -> nn.Module:
    """A clone with parameters and buffers in float64; tied ones stay tied."""
    clone = shallow_clone(root)
    known: dict[int, Tensor] = {}
    for module in clone.modules():
        registries: list[dict[str, Any]] = [module._parameters, module._buffers]
        for registry in registries:
            for name, tensor in registry.items():
                if tensor is None or not tensor.is_floating_point():
                    continue
                wide = tensor.detach().double()
                if isinstance(tensor, nn.Parameter):
                    wide = nn.Parameter(wide, tensor.requires_grad)
                registry[name] = known.setdefault(id(tensor), wide)
    return clone


def _observe(
    root: nn.Module,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    gradients: Gradients | None,
) -> tuple[list[Any], list[Tensor | None] | None, list[str]]:
    """Output leaves, inputs, buffers and attributes that the call wrote; gradients; names of these attributes."""
    (args, kwargs), copies, inputs = copied((args, kwargs))
    with untouched(root) as changes, _same_seed(), foreign_randomness_kept():
        result = contents(function(*args, **kwargs))
        slopes = None if gradients is None else gradients.of(result, inputs)
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in result]
        mutated = [t.detach() for t in copies if not t.is_inference() and t._version]
        return (
            [*leaves, *mutated, *(buffer.detach().clone() for buffer in changes.tensors()), *changes.values()],
            slopes,
            changes.attributes(),
        )


def copied(arguments: Any) -> tuple[Any, list[Tensor], list[Tensor]]:
    """Arguments that share nothing with those given, the tensors in them, and the leaves that require gradients."""
    copies: dict[int, Tensor] = {}
    inputs: list[Tensor] = []

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            try:
                return value if isinstance(value, nn.Module) else copy.deepcopy(value)
            except Exception:  # an object that cannot be copied
                return value
        if id(value) not in copies:  # one tensor given twice stays one
            twin = value.detach().clone().requires_grad_(value.requires_grad)
            if twin.requires_grad:
                inputs.append(twin)
            # What was computed may be written in place, which a leaf must not.
            copies[id(value)] = twin if value.is_leaf else twin.clone()
        return copies[id(value)]

    return map_arguments(own, arguments), list(copies.values()), inputs


class _Changes:
    """What a run wrote to a tree: by value for buffers, small parameters and unregistered tensors, and attributes."""

    def __init__(self, root: nn.Module, kept: contextlib.ExitStack) -> None:
        self._root = root
        self._belongings = Belongings(root)
        extra = self._belongings.tensors
        named = [*root.named_buffers(remove_duplicate=False), *root.named_parameters(), *extra.items()]
        pairs = {id(tensor): before for tensor, before in kept.enter_context(contents_kept(t for _, t in named))}
        self._before = [(name, tensor, pairs[id(tensor)]) for name, tensor in named if id(tensor) in pairs]
        kept.callback(self._belongings.restore)

    def attributes(self) -> list[str]:
        """Names of the attributes that were written."""
        return self._belongings.changed()

    def values(self) -> list[Any]:
        """Tensors and whole numbers among what was written to attributes."""
        written = [container.get(name) for _, container, _, names in self._belongings.replaced() for name in names]
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(written)]
        return [leaf for leaf in leaves if isinstance(leaf, (Tensor, int))]

    def tensors(self) -> list[Tensor]:
        """Buffers and small parameters that were written, or replaced by others."""
        now = dict([*self._root.named_buffers(remove_duplicate=False), *self._root.named_parameters()])
        changed = [name for name, tensor, value in self._before if _differs(now.get(name, tensor), tensor, value)]
        return [now[name] for name in changed if name in now]


def _differs(now: Tensor | None, tensor: Tensor, value: Tensor) -> bool:
    return now is not tensor or not is_identical(tensor, value)


@contextlib.contextmanager
def untouched(root: nn.Module) -> Iterator[_Changes]:
    """Put tensors and attributes of a tree back at the end of the block; yields what changed."""
    with contextlib.ExitStack() as kept:
        yield _Changes(root, kept)


@contextlib.contextmanager
def _same_seed() -> Iterator[None]:
    with _forked():
        torch.manual_seed(0)
        yield


def _forked() -> contextlib.AbstractContextManager[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices=devices)


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Within the block no random generator moves for good, and the caller's hooks on saved tensors see nothing."""
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    ours = torch.autograd.graph.saved_tensors_hooks(_pack, _unpack) if hooked else contextlib.nullcontext()
    with _forked(), foreign_randomness_kept(), ours:
        yield


def _pack(tensor: Tensor) -> Tensor:
    # An output that is saved as itself would keep itself alive. While tracing, detaching would be an operator.
    return tensor if isinstance(tensor, FakeTensor) else tensor.detach()


def _unpack(tensor: Tensor) -> Tensor:
    return tensor
