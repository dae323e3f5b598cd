"""Kernels as modules: they own what is learned, and say what program runs on which tensors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ..errors import InputError
from ..ir.kernel import Kernel
from ..ir.mlp import Mlp
from ..ir.pairwise import Pairwise
from ..lowering.tiled import flattened
from .function import KernelFunction, operands_of

__all__ = ["Ends", "FunctionKernel", "MlpKernel"]

# Positions of queries and sources, features of queries and sources.
Ends = tuple[Tensor, Tensor, Tensor, Tensor]
Shapes = tuple[tuple[int, ...], ...]

# E[GELU(z)²] for z normal with variance 1.
_GELU_SQUARE = 0.4252
_NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight": parametrizations.weight_norm,
    "spectral": parametrizations.spectral_norm,
}


class MlpKernel(nn.Module):
    """The kernel ``ir.mlp.Mlp`` with its parameters.

    Every part of the first layer starts with the same share of a variance of 1, and each further layer keeps it, so
    that κ starts with variance 1 for features of variance 1, at any number of positions.

    Args:
        heads: H.
        widths: Features of a query and of a source, (C, C'); 0 leaves them out.
        axes: P, of a position.
        hidden: Units of a hidden layer.
        depth: Hidden layers.
        fourier: Frequencies of the relative position; 0 leaves it out.
        absolute: Frequencies of the absolute positions; 0 leaves them out.
        frequency: Highest frequency to start with, in periods over a distance of 1; they are spread logarithmically
            from half a period on.
        period: Length after which positions repeat along each axis (a circle, a torus): frequencies are then the
            lowest whole multiples of one turn, and not learned. None for positions that do not repeat.
        normalise: Whether κ is a score.
        base: Width of the heads of a bilinear score ⟨q_i, k_j⟩/√width that κ is added to, with a gate that starts at
            0 (relaxation of attention); 0 for none.
        norm: ``weight`` or ``spectral`` normalisation of all matrices, or None.
    """

    def __init__(
        self,
        heads: int,
        widths: tuple[int, int],
        *,
        axes: int = 1,
        hidden: int = 32,
        depth: int = 1,
        fourier: int = 16,
        absolute: int = 0,
        frequency: float = 16.0,
        period: float | None = None,
        normalise: bool = False,
        base: int = 0,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        if not (fourier or absolute or any(widths)):
            raise InputError("a kernel of nothing", remedy="give fourier=, absolute= or features")
        if min(hidden, depth) < 1:
            raise InputError(f"{depth} hidden layers of {hidden} units", remedy="give at least one of each")
        if period is not None and period <= 0:
            raise InputError(f"a period of {period}", remedy="give the length of one turn")
        if norm is not None and norm not in _NORMS:
            raise InputError(f"there is no norm {norm!r}", remedy=f"choose one of {', '.join(_NORMS)}")
        self.kernel = Mlp(depth, normalise, base=bool(base))
        self.frequencies: Tensor | None
        self.absolute: Tensor | None
        for name, count in (("frequencies", fourier), ("absolute", absolute)):
            if period is not None and count:
                self.register_buffer(name, _multiples(count, axes, period))
            else:
                self.register_parameter(name, _frequencies(count, axes, frequency) if count else None)
        ends = [width + 2 * absolute for width in widths]
        parts = sum(bool(width) for width in (*ends, fourier))
        self.query, self.source = (_linear(width, hidden, parts, width) if width else None for width in ends)
        # Each sine and cosine has a mean square of ½.
        self.relative = _linear(2 * fourier, hidden, parts, fourier) if fourier else None
        self.bias = nn.Parameter(torch.zeros(hidden))
        sizes = [hidden] * depth + [heads]
        self.layers = nn.ModuleList(_linear(i, o, 1, _GELU_SQUARE * i, bias=True) for i, o in itertools.pairwise(sizes))
        self.base_query = _linear(widths[0], heads * base, 1, widths[0]) if base else None
        self.base_source = _linear(widths[1], heads * base, 1, widths[1]) if base else None
        self.gate = nn.Parameter(torch.zeros(heads)) if base else None
        self.features, self.heads = (bool(widths[0]), bool(widths[1])), heads
        if norm is not None:
            for module in [module for module in self.modules() if isinstance(module, nn.Linear)]:
                _NORMS[norm](module)

    def operands(self, ends: Ends) -> dict[str, Any]:
        """Operands of ``kernel`` by role, without value, measure and mask."""
        positions, sources, query, source = ends
        found: dict[str, Any] = {}
        if self.relative is not None or self.absolute is not None:
            found |= {"query_position": positions, "source_position": sources}
        for side, tensor, present in zip(("query", "source"), (query, source), self.features, strict=True):
            if present:
                found[f"{side}_features"] = tensor
        if self.frequencies is not None and self.relative is not None:
            found |= {"frequencies": self.frequencies, "relative_weight": self.relative.weight}
        if self.absolute is not None:
            found["absolute"] = self.absolute
        for name, layer in (("query_weight", self.query), ("source_weight", self.source)):
            if layer is not None:
                found[name] = layer.weight
        found |= {"bias": self.bias, "layers": [t for layer in self.layers for t in (layer.weight, layer.bias)]}
        if self.base_query is not None and self.base_source is not None:
            found["base_query"] = self.base_query(query).unflatten(-1, (self.heads, -1))
            found["base_source"] = self.base_source(source).unflatten(-1, (self.heads, -1))
            found["gate"] = self.gate
        return found

    def program(self, ends: Ends) -> tuple[Kernel, list[str]]:
        """The kernel as a ``Pairwise``, and the roles of its inputs in order."""
        flat = flattened(self.operands(ends))
        program = self.kernel.pair_program(dict(self.kernel.shapes_of_pair(flat)))
        return Pairwise(program, self.kernel.normalise), [item.name for item in program.inputs]


class FunctionKernel(nn.Module):
    """A kernel function with its parameters.

    Args:
        function: Made by ``itnet.kernel``.
        shapes: Of the four positional arguments for one pair.
        params: A module, or a mapping from names to tensors or parameters, which the function gets as ``params``: by
            name, those of a module with dots. They belong to this module.
        normalise: Whether the function gives scores.
    """

    def __init__(
        self, function: KernelFunction, shapes: Shapes, params: Any = None, *, normalise: bool = False
    ) -> None:
        super().__init__()
        self.function, self.normalise = function, normalise
        self.params = params if isinstance(params, nn.Module) else _registered(params)
        self.traced = function.traced(shapes, self._params())

    def operands(self, ends: Ends) -> dict[str, Any]:
        """Inputs of the program by name."""
        return operands_of(self.traced, ends, self._params())

    def program(self, ends: Ends) -> tuple[Kernel, list[str]]:
        """The kernel as a ``Pairwise``, and the names of its inputs in order."""
        program = self.traced.program
        return Pairwise(program, self.normalise), [item.name for item in program.inputs]

    def _params(self) -> dict[str, Tensor] | None:
        if self.params is None:
            return None
        return dict(self.params.named_parameters()) | dict(self.params.named_buffers())


class _Tensors(nn.Module):
    """Parameters and buffers by name."""


def _registered(params: Mapping[str, Tensor] | None) -> nn.Module | None:
    if params is None:
        return None
    holder = _Tensors()
    for name, tensor in params.items():
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(name, tensor)
        else:
            holder.register_buffer(name, tensor)
    return holder


def _linear(inputs: int, outputs: int, parts: int, squares: float, bias: bool = False) -> nn.Linear:
    """A linear layer whose output has variance 1 / ``parts`` where the squares of its inputs sum to ``squares``."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(max(squares, 1e-9) * parts))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _frequencies(count: int, axes: int, highest: float) -> nn.Parameter:
    """Directions on a sphere times frequencies from half a period to ``highest``, in radians."""
    sizes = torch.logspace(math.log2(0.5), math.log2(max(highest, 0.5)), count, base=2.0)
    directions = torch.randn(count, axes)
    directions = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-6)
    return nn.Parameter(2 * math.pi * sizes.unsqueeze(1) * directions)


def _multiples(count: int, axes: int, period: float) -> Tensor:
    """The ``count`` lowest frequencies of functions that repeat along each axis, one of n and −n, in radians."""
    found: list[tuple[int, ...]] = []
    reach = 0
    while len(found) < count:
        reach += 1
        every = itertools.product(range(-reach, reach + 1), repeat=axes)
        zero = (0,) * axes
        found = [n for n in every if n > zero and sum(i * i for i in n) <= reach * reach]
    lowest = sorted(found, key=lambda n: (sum(i * i for i in n), n))[:count]
    return 2 * math.pi / period * torch.tensor(lowest, dtype=torch.get_default_dtype())
