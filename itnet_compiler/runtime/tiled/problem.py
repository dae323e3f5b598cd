"""One call of the tiled integral: its tensors in the layout that all back ends share, and which pairs take part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.pair.program import Program

__all__ = ["Gradients", "Problem", "wide"]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute and to accumulate in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Problem:
    """A call, in the dtype of computation.

    Attributes:
        core: The pair program; its output has shape (H,), or () for one head.
        value: (B, H, M, V).
        query: Inputs of the core by name, (B, N, *shape).
        source: By name, (B, M, *shape).
        shared: By name, (*shape).
        mask: bool (1 or B, 1 or N, M), True where a pair takes part; or None.
        queries: N.
        normalise: Whether the weights are softmax of the core's output over the sources.
        before, after: Sources from i − before to i + after take part; None is all of that side.
        half: bfloat16 or float16 where the call came in it: matrix products may take their factors in it.
    """

    core: Program
    value: Tensor
    query: dict[str, Tensor]
    source: dict[str, Tensor]
    shared: dict[str, Tensor]
    mask: Tensor | None
    queries: int
    normalise: bool
    before: int | None
    after: int | None
    half: torch.dtype | None = None

    @property
    def batch(self) -> int:
        """B."""
        return int(self.value.shape[0])

    @property
    def heads(self) -> int:
        """H."""
        return int(self.value.shape[1])

    @property
    def sources(self) -> int:
        """M."""
        return int(self.value.shape[2])

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The sources that any query from ``start`` to ``stop`` (excluded) may see, as (first, past the last)."""
        first = 0 if self.before is None else max(0, start - self.before)
        last = self.sources if self.after is None else min(self.sources, stop + self.after)
        return min(first, self.sources), max(last, 0)

    def allowed(self, queries: slice, sources: slice, batch: slice = slice(None)) -> Tensor | None:
        """bool (1 or B, q, k) of a tile, or None where every pair takes part."""
        found = None
        if self.mask is not None:
            rows = queries if self.mask.shape[1] > 1 else slice(None)
            some = batch if self.mask.shape[0] > 1 else slice(None)
            found = self.mask[some, rows, sources]
        if self.before is not None or self.after is not None:
            i = torch.arange(queries.start, queries.stop, device=self.value.device).unsqueeze(1)
            j = torch.arange(sources.start, sources.stop, device=self.value.device)
            near = torch.ones((i.shape[0], j.shape[0]), dtype=torch.bool, device=self.value.device)
            if self.before is not None:
                near &= j >= i - self.before
            if self.after is not None:
                near &= j <= i + self.after
            found = near.unsqueeze(0) if found is None else found & near
        return found


@dataclass
class Gradients:
    """What a backward pass fills, in the dtype of computation: by name as in ``Problem``, those that are wanted."""

    value: Tensor | None
    inputs: dict[str, Tensor]

    @staticmethod
    def zeros(problem: Problem, names: Sequence[str], value: bool) -> Gradients:
        """Room for the gradients of these inputs of the core."""
        known = problem.query | problem.source | problem.shared
        return Gradients(
            torch.zeros_like(problem.value, memory_format=torch.contiguous_format) if value else None,
            {
                name: torch.zeros(known[name].shape, dtype=known[name].dtype, device=known[name].device)
                for name in names
            },
        )
