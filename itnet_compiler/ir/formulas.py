"""The formula of one node in its own labels, a line for each thing that is done: what ``explain`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layout import labels_of, parse
from .steps import Step

if TYPE_CHECKING:
    from .attention import Attention
    from .separable import Separable

__all__ = ["attention_formula", "separable_formula"]


def attention_formula(kernel: Attention) -> list[str]:
    """Scores, what is done to them, weights, what is done to those, and the sum of values."""
    labels, layouts = kernel.labels, kernel.layouts
    query, key = (_of(role[0], labels_of(layouts.get(role, ()))) for role in ("query", "key"))
    keys = " ".join(labels.keys)
    scores = (*kernel.first, *labels.queries, *labels.keys)
    lines = [f"{_of('s', scores)} = " + (f"{_sum(labels.channels)}{query}·{key}" if kernel.query else "0")]
    lines += [_step("s", step, keys) for step in kernel.steps]
    sink = f" + exp({_of('sink', labels_of(parse(kernel.sink)))})" if kernel.sink else ""
    total = f"(Σ_{keys} exp(s){sink})" if sink else f"Σ_{keys} exp(s)"
    lines.append(f"{_of('w', (*labels.batch, *labels.queries, *labels.keys))} = exp(s) / {total}")
    lines += [_step("w", step, keys) for step in kernel.after]
    lines.append(f"{_of('y', labels_of(parse(kernel.output)))} = Σ_{keys} w·{_of('v', labels_of(layouts['value']))}")
    return lines


def separable_formula(kernel: Separable) -> list[str]:
    """Weights, their sum where they are divided by it, and the sum of values."""
    labels, layouts = kernel.labels, kernel.layouts
    keys, key = " ".join(labels.keys), _of("k", labels_of(layouts["key"]))
    lines = [f"k ← exp(k) / Σ_{keys} exp(k)"] if kernel.softmaxed else []
    factors = [f"{kernel.scale:.6g}·"] if kernel.scale != 1.0 else []
    factors += [f"1/|{keys}|·"] if kernel.averaged else []
    factors.append(_sum(labels.channels))
    factors.append(f"{_of('q', labels_of(layouts['query']))}·{key}" if kernel.query else key)
    if kernel.mask:
        factors.append(f"·{'¬' if kernel.hides else ''}{_of('mask', labels_of(layouts['mask']))}")
    lines.append(f"{_of('K', (*labels.batch, *labels.queries, *labels.keys))} = {''.join(factors)}")
    if kernel.causal:
        lines.append(f"K ← 0 where {keys} > {' '.join(labels.queries)}")
    if kernel.normalised:
        total = f"Σ_{keys} K"
        if kernel.eps:
            total = f"max({total}, {kernel.eps:.3g})" if kernel.clamped else f"({total} + {kernel.eps:.3g})"
        lines.append(f"K ← K / {total}")
    lines.append(f"{_of('y', labels_of(parse(kernel.output)))} = Σ_{keys} K·{_of('v', labels_of(layouts['value']))}")
    return lines


def _of(symbol: str, labels: tuple[str, ...]) -> str:
    return f"{symbol}[{', '.join(labels)}]" if labels else symbol


def _sum(labels: tuple[str, ...]) -> str:
    return f"Σ_{' '.join(labels)} " if labels else ""


def _step(symbol: str, step: Step, keys: str) -> str:
    """``s ← s·0.125``, ``s ← s + mask[b, j]`` …"""
    operand = (
        _of(step.role, labels_of(parse(step.layout))) if step.role else f"{step.number:.6g}" if step.number else "0"
    )
    known = f"    ({step.pattern})" if step.pattern else ""
    signs = {"times": "·", "over": " / ", "plus": " + ", "minus": " - "}
    if step.kind in signs:
        return f"{symbol} ← {symbol}{signs[step.kind]}{operand}{known}"
    if step.kind in ("fill", "keep"):
        number = f"{step.number:.6g}" if step.number is not None else "0"
        return f"{symbol} ← {number} where {'not ' if step.kind == 'keep' else ''}{operand}{known}"
    if step.kind == "causal":
        query, key = labels_of(parse(step.layout))
        return f"{symbol} ← -inf where {key} > {query}"
    if step.kind == "mix":
        return f"{symbol} ← Σ_{step.old} {operand}·{symbol}"
    if step.kind == "normalise":
        return f"{symbol} ← {symbol} / " + (f"(Σ_{keys} {symbol} + {operand})" if step.number else f"Σ_{keys} {symbol}")
    if step.kind == "dropout":
        return f"{symbol} ← dropout({symbol}, {operand})"
    return f"{symbol} ← {step.kind}({symbol})"
