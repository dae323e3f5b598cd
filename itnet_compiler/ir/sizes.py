"""Readable sizes and types: ``f32[N,64,(H+1)//2,(W+1)//2]`` instead of ``s77`` and ``(((s53 - 1)//2)) + 1``."""

from __future__ import annotations

from collections import Counter
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Graph

__all__ = ["Sizes", "dtype_name"]

_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}

# Names of the symbolic axes after the first, by rank of the input; the last names are for the last axes.
_AXES = {2: "L", 3: "LL", 4: "CHW", 5: "CTHW"}


def dtype_name(dtype: torch.dtype) -> str:
    """``f32`` for ``torch.float32``."""
    return _DTYPES.get(dtype) or str(dtype).removeprefix("torch.")


class Sizes:
    """Names for the symbolic sizes of a graph: N for a batch, L for a length, H and W for an image; then N2, L2 …

    A name says where the symbol first appears among the graph's inputs; the symbol numbers of a capture, which change
    from run to run, never show.

    Attributes:
        examples: Name → size in the example inputs, where that is known.
    """

    def __init__(self, graph: Graph) -> None:
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}
        self._taken: set[str] = set()
        self._texts: dict[sympy.Expr, str] = {}
        self.examples: dict[str, int] = {}
        roles: dict[sympy.Symbol, str] = {}
        hints: dict[sympy.Symbol, int] = {}
        for node in graph.find_nodes(op="placeholder"):
            value = node.meta.get("val")
            sizes = list(value.shape) if isinstance(value, Tensor) else [value]
            for axis, size in enumerate(sizes):
                if isinstance(size, torch.SymInt):
                    known = size.node.shape_env.backed_var_to_val if size.node.shape_env is not None else {}
                    hints.update({symbol: int(hint) for symbol, hint in known.items()})
                    for symbol in sorted(size.node.expr.free_symbols, key=str):
                        roles.setdefault(symbol, _role(value, axis) if isinstance(value, Tensor) else "S")
        # Of several batch sizes (of a mask, say) the one that the network computes with is N.
        uses = Counter(symbol for node in graph.nodes for symbol in _symbols_of(node.meta.get("val")))
        for symbol in sorted(roles, key=lambda symbol: -uses[symbol]):
            name = self._name(symbol, roles[symbol])
            if symbol in hints:
                self.examples[str(name)] = hints[symbol]

    def _name(self, symbol: sympy.Symbol, role: str) -> sympy.Symbol:
        if symbol not in self._names:
            # Sizes known only at run time (u0, u1 …) keep the name that torch's own messages use.
            name = str(symbol) if str(symbol).startswith("u") else role
            number = 1
            while name in self._taken:
                number += 1
                name = f"{role}{number}"
            self._taken.add(name)
            self._names[symbol] = sympy.Symbol(name, integer=True)
        return self._names[symbol]

    def text(self, size: Any) -> str:
        """One size, or any symbolic number: ``64``, ``N``, ``(H+1)//2``."""
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return str(size)
        expression = size.node.expr
        if expression not in self._texts:
            names = {symbol: self._name(symbol, "S") for symbol in sorted(expression.free_symbols, key=str)}
            self._texts[expression] = _text(expression.xreplace(names))
        return self._texts[expression]

    def shape(self, value: Tensor) -> str:
        """``[N,3,224,224]``."""
        return "[" + ",".join(self.text(size) for size in value.shape) + "]"

    def type(self, value: Any) -> str:
        """Type of a recorded value: ``f32[N,L,64]``, ``int``, a tuple of these; empty where nothing was recorded."""
        if isinstance(value, Tensor):
            return dtype_name(value.dtype) + self.shape(value)
        if isinstance(value, (list, tuple)):
            return "(" + ", ".join(self.type(item) for item in value) + ")"
        kinds = {bool: "bool", int: "int", float: "float", torch.SymBool: "bool", torch.SymInt: "int"}
        return "" if value is None else kinds.get(type(value), "float" if isinstance(value, torch.SymFloat) else "")


def _symbols_of(value: Any) -> set[sympy.Symbol]:
    if not isinstance(value, Tensor):
        return set()
    sizes: tuple[Any, ...] = tuple(value.shape)
    symbolic = [size.node.expr for size in sizes if isinstance(size, torch.SymInt)]
    return {expression for expression in symbolic if isinstance(expression, sympy.Symbol)}


def _role(value: Tensor, axis: int) -> str:
    if axis == 0:
        return "N"
    letters = _AXES.get(value.dim(), "")
    letter = letters[axis - 1] if axis <= len(letters) else "S"
    return "S" if letter == "C" else letter


def _text(expression: Any) -> str:
    """A sympy expression as Python would be written by hand; ``(H-1)//2 + 1`` becomes ``(H+1)//2``."""
    if isinstance(expression, sympy.Add):
        return _sum(expression)
    if isinstance(expression, sympy.Mul):
        numbers = [f for f in expression.args if f.is_number]
        factors = [_factor(f) for f in expression.args if not f.is_number]
        # The batch first, single symbols before sums.
        factors.sort(key=lambda text: (text.startswith("("), text != "N", text))
        if numbers == [sympy.Integer(-1)]:
            return "-" + "*".join(factors)
        return "*".join([*factors, *map(_factor, numbers)])
    if isinstance(expression, sympy.Pow) and expression.exp.is_Integer and expression.exp.is_positive:
        return "*".join([_factor(expression.base)] * int(expression.exp))
    name = type(expression).__name__
    if name in ("FloorDiv", "CleanDiv"):
        return f"{_factor(expression.args[0])}//{_factor(expression.args[1])}"
    if name in ("Mod", "PythonMod"):
        return f"{_factor(expression.args[0])}%{_factor(expression.args[1])}"
    if name in ("Max", "Min"):
        return f"{name.lower()}({','.join(sorted(map(_text, expression.args)))})"
    return str(expression).replace(" ", "")


def _sum(expression: sympy.Add) -> str:
    constant = sum((term for term in expression.args if term.is_Integer), sympy.Integer(0))
    terms = [term for term in expression.args if not term.is_Integer]
    if len(terms) == 1 and constant and type(terms[0]).__name__ == "FloorDiv" and terms[0].args[1].is_Integer:
        numerator, divisor = terms[0].args
        return f"{_factor(sympy.expand(numerator + divisor * constant))}//{_text(divisor)}"
    texts = sorted((_text(term) for term in terms), key=lambda text: (text.startswith("-"), text))
    texts += [str(constant)] if constant else []
    if texts[0].startswith("-") and constant > 0:
        texts = [texts[-1], *texts[:-1]]
    return "".join(texts[:1] + [text if text.startswith("-") else f"+{text}" for text in texts[1:]])


def _factor(expression: Any) -> str:
    text = _text(expression)
    return text if _is_atom(text) else f"({text})"


def _is_atom(text: str) -> bool:
    return not any(sign in text for sign in "+-*/%") or (text.startswith(("max(", "min(")) and text.endswith(")"))
