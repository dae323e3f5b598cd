"""What a lowering is: a way to run an integral node, which says whether it can, and produces Python source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import LoweringError
from ..ir.kernel import Spec
from ..registry import scan

__all__ = ["Lowered", "Lowering", "Support", "default_lowering", "find_lowering", "lowerings"]


@dataclass(frozen=True)
class Support:
    """Whether a lowering can run a node, with every reason why not."""

    reasons: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons


@dataclass(frozen=True)
class Lowered:
    """Executable form of a node: one Python expression over its operands.

    Attributes:
        parameters: Operand roles, the arguments of ``function`` in order.
        expression: Python source in terms of ``parameters`` and the names in ``namespace``.
        namespace: Functions and constants that the expression uses.
        text: What stands for the source in short; the expression itself unless given.
        write: Gives the generated code that runs operands like these (role → ``ir.integral.Like``, or lists of them).
    """

    parameters: tuple[str, ...]
    expression: str
    namespace: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    write: Callable[[Mapping[str, Any]], str] | None = None

    @property
    def source(self) -> str:
        """Python source, or what is computed, in short."""
        return self.text or f"def integral({', '.join(self.parameters)}):\n    return {self.expression}\n"

    def code(self, examples: Mapping[str, Any]) -> str:
        """What runs operands like the examples, as ``node.source()`` shows it; in short where none are known."""
        return self.source if self.write is None or not examples else self.write(examples)

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The compiled expression; takes the operands by position or by role."""
        code = f"lambda {', '.join(self.parameters)}: {self.expression}"
        return eval(compile(code, "<itnet lowering>", "eval"), dict(self.namespace))


class Lowering:
    """Base of all lowerings; a subclass with a ``name`` in a module of ``lowering/`` is found by scanning.

    Class attributes:
        name: As users say it: ``library``, ``reference`` …
        exact: Whether it computes the definition up to rounding.
        error: What error it makes, where it is not exact.
        rank: Place among the exact lowerings from which a node's default is taken, 0 first; None: never a default.
    """

    name: str = ""
    exact: bool = True
    error: str = ""
    rank: int | None = None

    def within(self, tolerance: float) -> Lowering:
        """The same lowering, with an error of at most ``tolerance`` in its own measure.

        Raises:
            LoweringError: where it has no error to be chosen, or the tolerance is none.
        """
        raise LoweringError(
            f"the lowering {self.name!r} takes no tolerance", remedy="leave tolerance= out, or name method='newton'"
        )

    def supports(self, spec: Spec) -> Support:
        """Whether the node can be run, with every reason why not."""
        raise NotImplementedError

    def prefers(self, spec: Spec) -> bool:
        """Whether it may be the default of a node that it supports; not where another one is as fast or faster."""
        return True

    def build(self, spec: Spec) -> Lowered:
        """The executable form. Only called where ``supports`` is ok."""
        raise NotImplementedError


def lowerings() -> dict[str, Lowering]:
    """Every lowering by name."""
    found: dict[str, Lowering] = {}
    for module in scan("itnet_compiler.lowering"):
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Lowering) and value.name:
                found[value.name] = value()
    return found


def default_lowering(spec: Spec) -> Lowering:
    """What runs a node unless a plan says otherwise: the exact lowering of lowest rank that supports and prefers it.

    Raises:
        LoweringError: where none does, with the reasons of each.
    """
    ranked = [lowering for lowering in lowerings().values() if lowering.exact and lowering.rank is not None]
    reasons: list[str] = []
    for lowering in sorted(ranked, key=lambda lowering: lowering.rank or 0):
        support = lowering.supports(spec)
        if support.ok and lowering.prefers(spec):
            return lowering
        reasons += support.reasons
    raise LoweringError("; ".join(reasons))


def find_lowering(name: str) -> Lowering:
    """The lowering called ``name``. Raises ``LoweringError`` listing the names there are."""
    known = lowerings()
    if name not in known:
        raise LoweringError(f"there is no lowering {name!r}", remedy=f"choose one of {', '.join(sorted(known))}")
    return known[name]
