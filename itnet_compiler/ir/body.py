"""Bodies of loops: straight-line programs over carried values, values given at each step, and shared values.

A body is plain data (operators by name, operands by reference), so it is hashable, printable, copied and pickled like
any other attribute of a kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

__all__ = ["Body", "Call", "Progression", "Ref", "function_named", "map_refs", "refs_of"]


@dataclass(frozen=True)
class Ref:
    """A value in a body: ``carry`` (of the step before), ``step`` (given at each step), ``shared``, or ``local``."""

    kind: str
    index: int

    def __str__(self) -> str:
        return {"carry": "%h", "step": "%x", "shared": "%w", "local": "%"}[self.kind] + str(self.index)


@dataclass(frozen=True)
class Progression:
    """A number that changes with the step t = 0, 1, …: ``start + t·by``, or (start + t·by)/over if that is given.

    Computed in Python, in this order, so that floats are those of the source to the last bit.
    """

    start: int | float
    by: int | float
    over: int | float | None = None

    def at(self, step: int) -> int | float:
        """Its value at one step."""
        value = self.start + step * self.by
        return value if self.over is None else value / self.over

    def __str__(self) -> str:
        return self.source("t")

    def source(self, step: str) -> str:
        """Python source of its value, ``step`` being the name of the counter."""
        value = f"{self.start!r} + {step} * {self.by!r}"
        return value if self.over is None else f"({value}) / {self.over!r}"


@dataclass(frozen=True)
class Call:
    """One operator call: ``%3 = add(%h0, %x1)``.

    Attributes:
        target: ``aten.add.Tensor`` and the like, or ``getitem``; a function of the source's own as itself.
        args: Positional arguments: ``Ref``, ``Progression``, plain values, tuples of these (lists in the source).
        kwargs: Keyword arguments, as pairs.
    """

    target: str | Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The operator in one word; a function of the source's own with its module, so that it is none by name."""
        if not isinstance(self.target, str):
            return f"{self.target.__module__}.{self.target.__name__}"
        return self.target.split(".")[1] if "." in self.target else self.target

    def __str__(self) -> str:
        given = [_text(value) for value in self.args] + [f"{name}={_text(value)}" for name, value in self.kwargs]
        return f"{self.name}({', '.join(given)})"


@dataclass(frozen=True)
class Body:
    """One step of a loop.

    Attributes:
        calls: The operators, in order; call i makes ``local`` i.
        carried: What each carried value becomes after the step.
        outputs: Values that are kept of every step.
        finals: Values that are kept of the last step.
    """

    calls: tuple[Call, ...]
    carried: tuple[Ref, ...]
    outputs: tuple[Ref, ...] = ()
    finals: tuple[Ref, ...] = ()

    def lines(self) -> list[str]:
        """The body as text, a line an operator."""
        lines = [f"%{index} = {call}" for index, call in enumerate(self.calls)]
        lines += [f"%h{index} ← {ref}" for index, ref in enumerate(self.carried)]
        for word, refs in (("each", self.outputs), ("last", self.finals)):
            if refs:
                lines.append(f"{word} {', '.join(map(str, refs))}")
        return lines

    def run(self, step: int, carry: tuple[Any, ...], given: tuple[Any, ...], shared: tuple[Any, ...]) -> list[Any]:
        """The locals of one step."""
        values: list[Any] = []
        known = {"carry": carry, "step": given, "shared": shared, "local": values}
        for call in self.calls:
            args = [concrete(value, known, step) for value in call.args]
            kwargs = {name: concrete(value, known, step) for name, value in call.kwargs}
            values.append(function_named(call.target)(*args, **kwargs))
        return values


def concrete(value: Any, known: dict[str, Any], step: int) -> Any:
    """An argument with references and progressions replaced by what they stand for at one step."""
    if isinstance(value, Ref):
        return known[value.kind][value.index]
    if isinstance(value, Progression):
        return value.at(step)
    if isinstance(value, tuple):
        return [concrete(item, known, step) for item in value]
    return value


def refs_of(value: Any) -> Iterator[Ref]:
    """Every reference in a call, or in an argument."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Call):
        yield from refs_of(value.args)
        yield from refs_of(tuple(item for _, item in value.kwargs))
    elif isinstance(value, tuple):
        for item in value:
            yield from refs_of(item)


def map_refs(value: Any, change: Callable[[Ref], Any]) -> Any:
    """A call or an argument with every reference replaced."""
    if isinstance(value, Ref):
        return change(value)
    if isinstance(value, Call):
        kwargs = tuple((name, map_refs(item, change)) for name, item in value.kwargs)
        return Call(value.target, map_refs(value.args, change), kwargs)
    if isinstance(value, tuple):
        return tuple(map_refs(item, change) for item in value)
    return value


@cache
def function_named(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """The operator called ``aten.add.Tensor`` and the like; ``getitem`` is Python's. A function is itself."""
    if not isinstance(target, str):
        return target
    if target == "getitem":
        return operator.getitem
    space, name, overload = target.split(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, space), name), overload)
    return found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value).removeprefix("torch.")
