"""Kernels that users write: a function of one pair of positions in plain torch, integrated without being stored."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import InputError, KernelError
from ..ir.domain import Band, Domain, Keys
from ..ir.pair.trace import POSITIONAL, Traced, trace
from ..ir.pairwise import Pairwise
from ..lowering.tiled import integrate

__all__ = ["KernelFunction", "domain_of", "integral", "kernel", "operands_of", "padding_as_mask"]

_METHODS = ("tiled", "reference")


class KernelFunction:
    """A kernel κ written for one pair; ``@itnet.kernel`` makes one.

        @itnet.kernel
        def bell(pos_q, pos_k, feat_q, feat_k, *, params):
            return torch.exp(-params["sharpness"] * ((pos_q - pos_k) ** 2).sum())

        y = bell.integral(value, positions=p, params={"sharpness": sharpness})

    The function takes the position (P,) and the features (C,) of a query and of a source, and returns one number a
    head, (H,), or () for all heads alike. It is traced once for each set of widths. Whatever it takes from its
    surroundings (parameters, modules, tensors) becomes an operand, so that gradients reach it; it is the tensor that
    was there when the function was traced, so what is replaced later belongs in ``params``. Shapes are those of one
    pair and broadcast as always in torch; there is no batch axis. Decisions by value are ``torch.where``.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.takes_params = _checked(function)
        self._traced: dict[Any, Traced] = {}
        functools.update_wrapper(self, function)

    def __call__(self, *pair: Any, **keywords: Any) -> Tensor:
        """κ for one pair, by the function itself."""
        return self.function(*pair, **keywords)

    def traced(self, shapes: tuple[tuple[int, ...] | None, ...], params: Any = None) -> Traced:
        """The program for one pair of inputs of these shapes, (P,), (P,), (C,), (C'); None for what is not given.

        Raises:
            KernelError: with source line and remedy, where the function does what a kernel function cannot do.
        """
        leaves, tree = pytree.tree_flatten({} if params is None else params)
        key = (shapes, str(tree), tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)))
        if key not in self._traced:
            if self.takes_params != (params is not None):
                raise KernelError(
                    f"{self.function.__name__} {'takes' if self.takes_params else 'does not take'} params",
                    remedy="give params= exactly if the function has it",
                    source_line=_line(self.function),
                )
            self._traced[key] = trace(self.function, shapes, params)
        return self._traced[key]

    def integral(self, value: Tensor, **given: Any) -> Tensor:
        """``itnet.nn.integral(self, value, …)``."""
        return integral(self, value, **given)

    def __deepcopy__(self, memo: dict[int, Any]) -> KernelFunction:
        """Itself, as functions are: what it captured stays the same tensors."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as functions are."""
        return _named, (self.function.__module__, self.function.__qualname__)

    def __repr__(self) -> str:
        return f"kernel {self.function.__name__} ({_line(self.function)})"


def kernel(function: Callable[..., Tensor]) -> KernelFunction:
    """Decorator: a ``KernelFunction`` of ``k(pos_q, pos_k, feat_q, feat_k, *, params)``; ``params`` may be left out.

    Raises:
        KernelError: if the function does not take these arguments.
    """
    return KernelFunction(function)


def integral(
    kernel: KernelFunction,
    value: Tensor,
    *,
    positions: Tensor | None = None,
    features: Tensor | None = None,
    source_positions: Tensor | None = None,
    source_features: Tensor | None = None,
    params: Any = None,
    weights: Tensor | None = None,
    mask: Tensor | None = None,
    normalise: bool = False,
    causal: bool = False,
    window: int | tuple[int | None, int | None] | None = None,
    method: str = "tiled",
) -> Tensor:
    """y_i = Σ_j w_j·κ(i, j)·v_j, or with ``normalise`` the softmax of κ over the sources, weighted by w.

    Memory beyond inputs and outputs is proportional to N + M, forward and backward; second derivatives need
    ``method="reference"``.

    Args:
        kernel: κ, of H heads or one number for all.
        value: v, (B, H, M, V).
        positions: p of the queries, (B or 1, N, P).
        features: u of the queries, (B or 1, N, C). One of ``positions`` and ``features`` is needed.
        source_positions: p' of the sources, (B or 1, M, P); by default those of the queries.
        source_features: u' of the sources, (B or 1, M, C'); by default those of the queries.
        params: Tensors in any nesting, passed to the kernel function.
        weights: w, (B or 1, M), quadrature weights; 1 by default. Not negative where weights are normalised.
        mask: bool (B, M) for padding, or (B or 1, N or 1, M): True where a source takes part.
        normalise: Whether κ is a score.
        causal: Only sources j ≤ i take part.
        window: Only sources with |i − j| ≤ window, or (before, after).
        method: ``tiled``, or ``reference`` for the dense definition.

    Returns:
        y, (B, H, N, V). A query without sources gets 0.

    Raises:
        InputError: if shapes do not fit each other.
        KernelError: if the kernel function cannot be traced.
    """
    if positions is None and features is None:
        raise InputError("the integral has no queries", remedy="give positions= or features=")
    if method not in _METHODS:
        raise InputError(f"there is no method {method!r}", remedy=f"choose one of {', '.join(_METHODS)}")
    source_positions = positions if source_positions is None else source_positions
    source_features = features if source_features is None else source_features
    ends = (positions, source_positions, features, source_features)
    like = next(end for end in (positions, features) if end is not None)
    _check_sizes(value, ends, like.shape[1])
    traced = kernel.traced(tuple(None if end is None else tuple(end.shape[2:]) for end in ends), params)
    (found,) = traced.program.outputs
    if traced.program.values[found].size not in (1, value.shape[1]):
        raise InputError(
            f"{kernel!r} gives {traced.program.values[found].size} numbers for values of {value.shape[1]} heads",
            remedy="give values of (batch, heads, sources, width) with as many heads, or return one number",
        )
    inputs = operands_of(traced, ends, params)
    domain, mask = domain_of(causal, window), padding_as_mask(mask)
    if method == "reference":
        extra: dict[str, Any] = {"measure": weights} if weights is not None else {}
        given = inputs | extra | {"value": value, "mask": mask, "like_queries": like}
        return Pairwise(traced.program, normalise).evaluate(domain, **given)
    return integrate(
        traced.text,
        list(inputs.values()),
        value,
        measure=weights,
        mask=mask,
        like_queries=like,
        normalise=normalise,
        domain=domain,
    )


def operands_of(traced: Traced, ends: tuple[Tensor | None, ...], params: Any) -> dict[str, Tensor]:
    """The inputs of a traced function by name."""
    given: dict[str, Tensor | None] = {name: end for (name, _), end in zip(POSITIONAL, ends, strict=True)}
    leaves = pytree.tree_leaves({} if params is None else params)
    given |= {f"params_{place}": leaf for place, leaf in enumerate(leaves)}
    given |= {f"captured_{place}": tensor for place, tensor in enumerate(traced.captured)}
    return {item.name: tensor for item in traced.program.inputs if (tensor := given[item.name]) is not None}


def domain_of(causal: bool, window: int | tuple[int | None, int | None] | None) -> Domain:
    """The domain that ``causal`` and ``window`` describe. Raises ``InputError`` for a negative window."""
    before, after = (window, window) if window is None or isinstance(window, int) else window
    if min(before or 0, after or 0) < 0:
        raise InputError(f"window {window} is negative", remedy="give the number of positions on each side")
    if before is None and after is None:
        return Keys(causal=causal)
    return Band(before, 0 if causal else after)


def padding_as_mask(mask: Tensor | None) -> Tensor | None:
    """A mask (B, M) of padding as (B, 1, M). Raises ``InputError`` for another dtype or rank."""
    if mask is None:
        return None
    if mask.dtype != torch.bool or mask.dim() not in (2, 3):
        raise InputError(
            f"a mask of {str(mask.dtype).removeprefix('torch.')} with {mask.dim()} axes",
            remedy="give bool (B, M) for padding, or (B, N, M); True where a source takes part",
        )
    return mask.unsqueeze(1) if mask.dim() == 2 else mask


def _check_sizes(value: Tensor, ends: tuple[Tensor | None, ...], queries: int) -> None:
    if value.dim() != 4:
        raise InputError(f"values of shape {tuple(value.shape)}", remedy="give (batch, heads, sources, width)")
    for (name, side), end in zip(POSITIONAL, ends, strict=True):
        wanted = queries if side == 1 else value.shape[2]
        if end is not None and (end.dim() != 3 or end.shape[1] != wanted or end.shape[0] not in (1, value.shape[0])):
            raise InputError(
                f"{name} has shape {tuple(end.shape)}, with values of shape {tuple(value.shape)}",
                remedy=f"give ({value.shape[0]} or 1, {wanted}, width)",
            )


def _checked(function: Callable[..., Any]) -> bool:
    """Whether a kernel function takes ``params``."""
    names = [name for name, _ in POSITIONAL]
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p for p in parameters if p not in positional]
    if len(positional) != len(names) or any(p.name != "params" for p in others):
        raise KernelError(
            f"a kernel function takes ({', '.join(names)}, *, params), not {inspect.signature(function)}",
            remedy="params may be left out; the names of the other four are free",
            source_line=_line(function),
        )
    return bool(others)


def _named(module: str, name: str) -> Any:
    """The kernel function of a module."""
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _line(function: Callable[..., Any]) -> str | None:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else None
