"""What every kernel is: a frozen dataclass of a family, whose ``evaluate`` in plain torch is its definition."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain

__all__ = ["Draw", "Kernel", "Sample", "Spec", "Work", "kernels"]

Operands = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """Cost of one evaluation: floating-point operations (a multiply-add is two) and bytes read plus written."""

    flops: int
    bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels.

    A subclass is one file in ``ir/``: a frozen dataclass of structure (plain Python values only; tensors are
    operands), found by scanning. ``evaluate`` is its mathematical definition: dense, in plain torch operators, no
    fused library call, correct in every floating dtype.

    Class attributes:
        family: Name of the family, as in the IR.
        value_map: v in ∫ K v dμ, in words.
    """

    family: ClassVar[str] = ""
    value_map: ClassVar[str] = "identity"

    @property
    def reduction(self) -> str:
        """``sum``, or ``max`` for max-pooling."""
        return "sum"

    def properties(self, domain: Domain) -> frozenset[str]:
        """Declared facts, each tested: a subset of {stationary, causal, normalised, separable, linear}.

        stationary: K depends on positions only through p' − s·p. causal: no output depends on a later source
        position. normalised: weights over the sources sum to 1. separable: K is a product of a query and a source
        factor. linear: the output is linear in the value operand.
        """
        raise NotImplementedError

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """The definition: output tensor, or tuple of tensors where the node returns several."""
        raise NotImplementedError

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K itself, materialised for small operands. Raises ``NotImplementedError`` where K is no matrix."""
        raise NotImplementedError(f"the {self.family} family has no kernel matrix")

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """The same structure at small sizes, all different, for checking a lowering against ``evaluate``.

        ``roles`` are the operands that the node has; the sample draws exactly these.
        """
        raise NotImplementedError

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Cost from operand and output shapes (meta or fake tensors with concrete sizes, or lists of them)."""
        raise NotImplementedError

    def formula(self) -> list[str]:
        """What this very node computes, line by line; empty where the formula of its class says it."""
        return []

    def describe(self) -> str:
        """Text after ``kernel`` in the IR: the family and every field that differs from its default."""
        shown = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value == item.default:
                continue
            shown.append(item.name if value is True else f"{item.name}={_short(value)}")
        return self.family + (f"({', '.join(shown)})" if shown else "")

    def details(self) -> list[str]:
        """Further lines of text for the IR, below the line of the node: the program of a loop's step."""
        return []

    @classmethod
    def samples(cls) -> list[Sample]:
        """Cases for the conformance suite: every structural variant, with odd sizes (0, 1, 7, 63) among them."""
        raise NotImplementedError


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace(" ", "")


@dataclass(frozen=True)
class Spec:
    """What an integral node is, without its tensors: hashable, so that equal nodes are verified once.

    Attributes:
        kernel: K, with the family.
        domain: S(x).
        origin: The layer in everyday words (``conv2d``, ``attention``, ``lstm`` …).
        operands: Roles of the tensors the node takes, in the order in which it takes them.
    """

    kernel: Kernel
    domain: Domain
    origin: str
    operands: tuple[str, ...]

    def evaluate(self, **operands: Any) -> Any:
        """The dense definition applied to ``operands`` (by role)."""
        return self.kernel.evaluate(self.domain, **operands)

    def miniature(self) -> Sample:
        """The same structure at small, all-different sizes."""
        return self.kernel.miniature(self.domain, self.operands)

    def describe(self) -> str:
        """``over <domain>, kernel <kernel>``."""
        return f"over {self.domain.describe()}, kernel {self.kernel.describe()}"


@dataclass(frozen=True)
class Draw:
    """How to draw one random operand: shape and kind.

    ``float``: normal, with standard deviation ``deviation``; ``positive``: between 0.5 and 1.5; ``negative``: minus its
    absolute value; ``fraction``: between 0 and 1; ``unit``: of length 1 along the last axis; ``complex``: both parts
    normal; ``bool``: about 70 % True; ``long``: 0 or 1; ``mask``: 0 or −∞.
    """

    shape: tuple[int, ...]
    kind: str = "float"
    deviation: float = 1.0

    def tensor(self, dtype: torch.dtype, generator: torch.Generator, *, strided: bool = False) -> Tensor:
        """A random tensor; with ``strided`` a non-contiguous view holding the same values."""
        if self.kind == "bool":
            value = torch.rand(self.shape, generator=generator, dtype=torch.float64) < 0.7
        elif self.kind == "complex":
            value = torch.randn(self.shape, generator=generator, dtype=torch.complex128)
            value = value.to(torch.promote_types(dtype, torch.complex64))
        elif self.kind == "long":
            value = torch.randint(0, 2, self.shape, generator=generator)
        elif self.kind == "mask":
            keep = torch.rand(self.shape, generator=generator, dtype=torch.float64) < 0.7
            value = torch.zeros(self.shape, dtype=dtype).masked_fill(~keep, float("-inf"))
        else:
            value = torch.randn(self.shape, generator=generator, dtype=torch.float64).mul_(self.deviation)
            value = self.shaped(value).to(dtype)
        if strided and value.dim():
            wide = value.new_zeros((*self.shape[:-1], 2 * self.shape[-1]))
            wide[..., ::2] = value
            value = wide[..., ::2]
        return value

    def shaped(self, value: Tensor) -> Tensor:
        """Normal numbers brought where this kind has its values."""
        if self.kind == "positive":
            return torch.sigmoid(value) + 0.5
        if self.kind == "negative":
            return -value.abs()
        if self.kind == "fraction":
            return torch.sigmoid(value)
        if self.kind == "unit":
            return torch.nn.functional.normalize(value, dim=-1)
        return value


@dataclass(frozen=True)
class Sample:
    """A structure with operands to draw: role → ``Draw``, list of ``Draw`` or of int, or None."""

    spec: Spec
    draws: Mapping[str, Any] = field(hash=False)

    def operands(self, dtype: torch.dtype, generator: torch.Generator, *, strided: bool = False) -> dict[str, Any]:
        """Random operands by role."""

        def one(item: Any) -> Any:
            if isinstance(item, Draw):
                return item.tensor(dtype, generator, strided=strided)
            if isinstance(item, (list, tuple)):
                return [one(part) for part in item]
            return item

        return {role: one(item) for role, item in self.draws.items()}


def kernels() -> tuple[type[Kernel], ...]:
    """Every kernel: all ``Kernel`` subclasses with a family in the modules of ``ir/``. A family may have several."""
    from ..registry import scan

    found = {
        value: None
        for module in scan("itnet_compiler.ir")
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Kernel) and value.family
    }
    return tuple(found)
