"""Shape guards of a capture: for which input sizes its graph is valid, as one compiled Python predicate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP, ShapeEnv
from torch.utils._sympy.printers import PythonPrinter

__all__ = ["ShapeGuards"]


class ShapeGuards:
    """Decides from the shapes of the input tensors whether a captured graph applies to them.

    Args:
        values: Fake tensors of the graph's inputs, in order.

    Attributes:
        conditions: The conditions as readable Python, over ``shape0``, ``shape1`` …
        dynamic: (input, axis) pairs whose size may vary.
        symbols: Where each free size symbol is first found, e.g. ``shape0[1]``.
    """

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        where: dict[sympy.Symbol, str] = {}
        self.dynamic: list[tuple[int, int]] = []
        checks: list[str] = []
        pending: list[tuple[str, sympy.Expr]] = []
        environment: ShapeEnv | None = None
        for index, value in enumerate(values):
            for axis, size in enumerate(value.shape):
                spot = f"shape{index}[{axis}]"
                if isinstance(size, int) or size.node.expr.is_Integer:
                    checks.append(f"{spot} == {int(size)}")
                    continue
                environment = size.node.shape_env
                expression = size.node.expr
                self.dynamic.append((index, axis))
                if isinstance(expression, sympy.Symbol) and expression not in where:
                    where[expression] = spot
                    checks.extend(_range_checks(environment, expression, spot))
                else:
                    pending.append((spot, expression))
        show = _Printer(where).doprint
        for spot, expression in pending:
            if expression.free_symbols <= where.keys():
                checks.append(f"{spot} == {show(expression)}")
        if environment is not None:
            for guard in environment.guards:
                condition = environment.simplify(guard.expr)
                if condition is not sympy.true and condition.free_symbols <= where.keys():
                    checks.append(show(condition))
        self.conditions = list(dict.fromkeys(checks))
        self.symbols = where
        self._count = len(values)
        self._fits = self._compile()

    def _compile(self) -> Callable[[Sequence[Any]], bool]:
        names = "".join(f"shape{index}, " for index in range(self._count))
        body = " and ".join(f"({condition})" for condition in self.conditions) or "True"
        unpack = f"    {names}= shapes\n" if names else ""
        scope: dict[str, Any] = {**SYMPY_INTERP, "math": math, "inf": math.inf}
        exec(f"def fits(shapes):\n{unpack}    return {body}\n", scope)
        return scope["fits"]

    def fit(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether inputs of these shapes (ranks as captured) may be given to the graph.

        torch.export takes a symbolic size to be at least 2 and draws conclusions from it. So 0 and 1 count as 2 here,
        and whoever runs the graph on them tries it against the original first (see ``small``).
        """
        if self._fits(shapes):
            return True
        spots = self.small(shapes)
        if not spots:
            return False
        widened = [list(shape) for shape in shapes]
        for index, axis in spots:
            widened[index][axis] = 2
        return bool(self._fits(widened))

    def small(self, shapes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """The (input, axis) pairs of symbolic sizes that are 0 or 1 in ``shapes``."""
        return [(index, axis) for index, axis in self.dynamic if shapes[index][axis] < 2]

    def violated(self, shapes: Sequence[torch.Size]) -> list[str]:
        """The conditions that inputs of these shapes break."""
        scope: dict[str, Any] = {**SYMPY_INTERP, "math": math, "inf": math.inf}
        scope |= {f"shape{index}": shape for index, shape in enumerate(shapes)}
        return [condition for condition in self.conditions if not eval(condition, scope)]

    def __deepcopy__(self, memo: dict[int, Any]) -> ShapeGuards:
        return self


def _range_checks(environment: ShapeEnv, symbol: sympy.Symbol, spot: str) -> list[str]:
    """Bounds of a size. torch assumes sizes of at least 2 while tracing; 0 and 1 are tried when they first occur."""
    bounds = environment.var_to_range.get(symbol)
    if bounds is None:
        return []
    checks = []
    if bounds.lower.is_Integer and int(bounds.lower) > 2:
        checks.append(f"{spot} >= {int(bounds.lower)}")
    if bounds.upper.is_Integer:
        checks.append(f"{spot} <= {int(bounds.upper)}")
    return checks


class _Printer(PythonPrinter):
    def __init__(self, where: dict[sympy.Symbol, str]) -> None:
        super().__init__()
        self._where = where

    def _print_Symbol(self, symbol: sympy.Symbol) -> str:  # noqa: N802 - the name that sympy's printer looks up
        return self._where.get(symbol, str(symbol))
