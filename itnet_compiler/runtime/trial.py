"""A trial: the original code and a captured graph run side by side on one call, leaving no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..passes.verify import relative_error

__all__ = ["Trial", "run_trial"]

# Relative L2 between two correct evaluations in different order; beyond it the functions differ.
_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Trial:
    """Outcome of one trial.

    Attributes:
        error: Relative L2 difference of outputs and of the buffers written, worst first; 0.0 where bit-equal.
        equal: Whether the difference is within rounding, or within the original's own difference between two runs.
        own_error: The original against itself with the same seed; 0.0 unless it is not deterministic.
    """

    error: float
    equal: bool
    own_error: float = 0.0

    def describe(self) -> str:
        """One sentence for the report."""
        if self.own_error:
            return (
                f"the original differs from itself by {self.own_error:.1e} (same seed); the graph by {self.error:.1e}"
            )
        return "outputs bit-equal to the original's" if self.error == 0 else f"outputs within {self.error:.1e}"


def run_trial(
    root: nn.Module,
    original: Callable[..., Any],
    graph: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Trial:
    """Compare ``original(*args, **kwargs)`` with ``graph(...)`` under one seed; buffers and generators are restored."""
    expected = _observe(root, original, args, kwargs)
    value = _observe(root, graph, args, kwargs)
    bound = max((_BOUNDS.get(leaf.dtype, 0.0) for leaf in expected if isinstance(leaf, Tensor)), default=0.0)
    error = relative_error(value, expected)
    if error <= bound:
        return Trial(error, True)
    own = relative_error(_observe(root, original, args, kwargs), expected)
    return Trial(error, own > bound, own)


def _observe(root: nn.Module, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Output leaves and the buffers that the call wrote."""
    copies: dict[int, Tensor] = {}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:  # one tensor given twice stays one
            copies[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        return copies[id(value)]

    args, kwargs = pytree.tree_map(own, (args, kwargs))
    with _restored(root) as written, _same_seed():
        result = function(*args, **kwargs)
        leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(result)]
        return [*leaves, *(buffer.clone() for buffer in written())]


@contextlib.contextmanager
def _restored(root: nn.Module) -> Iterator[Callable[[], list[Tensor]]]:
    """Put every buffer back that was written in the block; yields a function that lists them."""
    # By value: batch norm writes its statistics without bumping the version counter of the buffer.
    before = {name: (b, b.detach().clone()) for name, b in root.named_buffers(remove_duplicate=False)}

    def changed() -> list[str]:
        now = dict(root.named_buffers(remove_duplicate=False))
        return [name for name, (b, value) in before.items() if now.get(name) is not b or not torch.equal(b, value)]

    def written() -> list[Tensor]:
        now, names = dict(root.named_buffers(remove_duplicate=False)), changed()
        return [now[name] for name in names if name in now]

    try:
        yield written
    finally:
        with torch.no_grad():
            for name in changed():
                buffer, value = before[name]
                buffer.copy_(value)
                owner, _, key = name.rpartition(".")
                root.get_submodule(owner)._buffers[key] = buffer


@contextlib.contextmanager
def _same_seed() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield
