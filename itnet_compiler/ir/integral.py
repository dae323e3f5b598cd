"""The IR node: one ``call_module`` node per integral transform; tensors are operands, structure frozen dataclasses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from .domain import Domain
from .kernel import Kernel, Spec

__all__ = ["Integral", "Like", "Plan", "Verification"]


@dataclass(frozen=True)
class Verification:
    """How a rewrite was checked. Errors are relative L2 in float64.

    Attributes:
        status: ``verified``, ``skipped`` (``verify=False``) or ``failed``.
        region_error: The matched region against the node's exact lowering, at the real shapes.
        resized_error: The same with the symbolic sizes bound to other, mutually distinct values; None where
            no size is symbolic.
        definition_error: That lowering against the family's dense definition, at small, all-different sizes.
        note: What was different from the full check, and why.
    """

    status: str
    region_error: float | None = None
    resized_error: float | None = None
    definition_error: float | None = None
    note: str = ""

    @property
    def error(self) -> float | None:
        """The worst of the three errors; None where nothing was checked."""
        errors = [e for e in (self.region_error, self.resized_error, self.definition_error) if e is not None]
        return max(errors, default=None)


@dataclass(frozen=True)
class Plan:
    """How a node is run.

    Attributes:
        lowering: Name of the lowering.
        exact: Whether it computes the definition up to rounding.
        note: Why this lowering, where that is not obvious, or what error it makes.
        tolerance: What it was given, where it takes one.
    """

    lowering: str
    exact: bool = True
    note: str = ""
    tolerance: float | None = None


@dataclass(frozen=True)
class Like:
    """What a tensor operand was when the node was made.

    Attributes:
        shape: Sizes; those of the example inputs where they are symbolic.
        dtype: Its dtype.
        device: Type of its device.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str


class Executable(Protocol):
    """What a lowering builds: see ``lowering.base.Lowered``."""

    @property
    def function(self) -> Callable[..., Any]: ...

    @property
    def source(self) -> str: ...

    def code(self, examples: Mapping[str, Any]) -> str: ...


class Integral(nn.Module):
    """y(x) = ∫_{S(x)} K(x, x', f(x), f(x')) v(f(x')) dμ(x') as a graph node.

    It owns no parameters; the tensors it integrates are operands of the call, by role.

    Attributes:
        spec: Kernel, domain, origin and operand roles.
        name: Unique in its graph: the module path, with ``#2`` for a second integral of the same module.
        module_path: Path of the module that it came from.
        source_line: ``file.py:12`` of the call in the user's code, or None.
        verification: How the rewrite was checked.
        plan: How it is run.
        examples: Role → ``Like`` of the operand, or a list of them; empty where that is not known.
    """

    def __init__(
        self,
        spec: Spec,
        executable: Executable,
        plan: Plan,
        *,
        name: str,
        module_path: str,
        source_line: str | None,
        verification: Verification,
        examples: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.examples = dict(examples or {})
        self.spec, self.executable, self.plan = spec, executable, plan
        self.name, self.module_path, self.source_line = name, module_path, source_line
        self.verification = verification

    @property
    def kernel(self) -> Kernel:
        """K: a frozen dataclass of the family."""
        return self.spec.kernel

    @property
    def family(self) -> str:
        """Name of the kernel family: ``stationary``, ``softmax`` …"""
        return self.spec.kernel.family

    @property
    def domain(self) -> Domain:
        """S(x)."""
        return self.spec.domain

    @property
    def origin(self) -> str:
        """The layer in everyday words: ``conv2d``, ``attention``, ``lstm`` …"""
        return self.spec.origin

    def source(self) -> str:
        """What runs this node: Python source or, where code is generated for operands like its own, that code."""
        return self.executable.code(self.examples)

    def forward(self, **operands: Any) -> Any:
        """Run the planned lowering on ``operands`` (by role, as in ``spec.operands``)."""
        return self.executable.function(**operands)

    def extra_repr(self) -> str:
        return f"{self.name}: {self.origin} {self.spec.describe()}, plan {self.plan.lowering}"
