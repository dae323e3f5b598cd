"""The table of traps: small models that a careless rewrite would change, and what must become of each.

    @trap(X, expect="parts", parts=["stem"])
    class Branch(nn.Module):
        '''Loses the branch not taken at the example.'''

registers a model class with its example call. ``@usage(Model, X)`` registers something that people do with a model: a
function that is run with the original and with the unified model, whose results are compared. As a generator it
prepares the plain model first; at its ``yield`` the model is unified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["TRAPS", "USAGES", "Call", "Trap", "Usage", "call", "trap", "usage"]


@dataclass(frozen=True)
class Call:
    """Arguments of one call; whoever runs it works on copies."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def call(*args: Any, **kwargs: Any) -> Call:
    """One call, written as it is made."""
    return Call(args, kwargs)


@dataclass(frozen=True)
class Trap:
    """A model, its calls and what is expected.

    Attributes:
        name: Of the class.
        make: Makes the model.
        calls: Of which the first is the example.
        expect: What ``unify`` makes of it in eval mode: ``whole`` (one graph), ``parts`` (sub-modules captured, the
            rest Python) or ``python`` (nothing captured); ``any`` where it may be any of them.
        training: The same in train mode.
        parts: Paths that must be among the captured parts, in either mode that expects parts.
        train: Whether train mode differs from eval mode, or may.
        grad: Whether gradients are compared.
        writes: Whether forward writes into its input, which then cannot be a leaf.
        pickles: Whether the model can be pickled.
        casts: Whether the model is tried in other dtypes; errors count as results then.
    """

    name: str
    make: Callable[[], nn.Module]
    calls: tuple[Call, ...]
    expect: str = "whole"
    training: str = ""
    parts: tuple[str, ...] = ()
    train: bool = True
    grad: bool = True
    writes: bool = False
    pickles: bool = True
    casts: bool = True

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Usage:
    """Something done with a model."""

    name: str
    make: Callable[[], nn.Module]
    example: Call
    run: Callable[..., Any]

    def __str__(self) -> str:
        return self.name


TRAPS: dict[str, Trap] = {}
USAGES: dict[str, Usage] = {}


def trap(
    *args: Any,
    then: tuple[Call, ...] | list[Call] = (),
    make: Callable[[Any], nn.Module] | None = None,
    parts: tuple[str, ...] | list[str] = (),
    **options: Any,
) -> Callable[[Any], Any]:
    """Register a class with its example call: positional arguments, or one ``call(…)``.

    Without ``then`` the example is called three times, so that state evolves. ``make`` takes the class.
    """
    example = args[0] if args and isinstance(args[0], Call) else Call(args)
    calls = (example, *then) if then else (example,) * 3

    def register(cls: Any) -> Any:
        name = cls.__name__
        assert name not in TRAPS and cls.__doc__, f"{name} needs a name and a docstring of its own"
        if parts:
            options.setdefault("expect", "parts")
        options.setdefault("training", options.get("expect", "whole"))
        TRAPS[name] = Trap(name, (lambda: make(cls)) if make else cls, calls, parts=tuple(parts), **options)
        return cls

    return register


def usage(make: Callable[[], nn.Module], *args: Any) -> Callable[[Any], Any]:
    """Register a function of a model as something that users do with it."""
    example = args[0] if args and isinstance(args[0], Call) else Call(args)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        assert function.__name__ not in USAGES and function.__doc__
        USAGES[function.__name__] = Usage(function.__name__, make, example, function)
        return function

    return register
