"""Known functions: scans that libraries write as Python loops, kept as one node by the capture.

A known function is declared beside the rule that says which integral it is: ``KNOWN = KnownFunction(…)``. The
capture records a call of it as one custom operator, then as a ``KnownCall`` of the function
itself, which is what runs, and what the rewrite is verified against: knowing a name proves nothing.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ..registry import scan

__all__ = ["KnownCall", "KnownFunction", "known_functions", "packed"]


@dataclass(frozen=True)
class KnownFunction:
    """A function of other people's code that one integral stands for.

    Attributes:
        name: In the graph, ``itnet_leaf.<name>``.
        package: Where it is found: in every loaded module whose name starts so.
        functions: Its names there; ``Class.method`` for a method, whose instance is the first argument.
        schema: Arguments and results of the operator recorded, as in ``torch.library``: ``(Tensor x, …) -> …``. Results
            are tensors only.
        arguments: From the arguments of a call by name to those of the operator; None for a call it does not stand for.
        call: Calls the function with the operator's arguments; returns its results.
        shapes: Fake implementation: from the operator's arguments to empty results.
        result: What the caller is given, from the results and the arguments of the call by name.
    """

    name: str
    package: str
    functions: tuple[str, ...]
    schema: str
    arguments: Callable[[dict[str, Any]], tuple[Any, ...] | None]
    call: Callable[..., Any]
    shapes: Callable[..., Any]
    result: Callable[[Any, dict[str, Any]], Any]

    def places(self) -> Iterator[tuple[Any, str, str]]:
        """(module or class, attribute, ``module:name``) of every loaded function of this kind."""
        for name, module in list(sys.modules.items()):
            if name.startswith(self.package):
                for function in self.functions:
                    *outer, attribute = function.split(".")
                    owner = getattr(module, outer[0], None) if outer else module
                    # A class is where it is defined, not in every module that imports it.
                    here = not outer or getattr(owner, "__module__", None) == name
                    if here and inspect.isfunction(vars(owner).get(attribute)):
                        yield owner, attribute, f"{name}:{function}"

    def bind(self, node: Node) -> dict[str, Any]:
        """Arguments of a recorded call by the names in the schema."""
        names = [part.split("=")[0].split()[-1] for part in self.schema[1 : self.schema.index(")")].split(",")]
        return dict(zip(names, node.args, strict=True))


@dataclass(frozen=True)
class KnownCall:
    """What a graph node of a known function calls: the function itself, with the operator's arguments."""

    known: KnownFunction
    function: Callable[..., Any]

    def __post_init__(self) -> None:
        # What names of operators are made from.
        object.__setattr__(self, "__name__", self.known.name)
        object.__setattr__(self, "__module__", "itnet_leaf")

    def __call__(self, *arguments: Any) -> Any:
        return self.known.call(self.function, *arguments)

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__name__}"


def packed(given: dict[str, Any]) -> bool:
    """Whether a call is told where packed sequences begin; a recurrence over one sequence does not stand for it."""
    others = given.get("kwargs", {})
    return any(others.get(name) is not None for name in ("cu_seqlens", "seq_idx"))


def known_functions() -> tuple[KnownFunction, ...]:
    """All that are declared, in the order of their modules."""
    modules = scan("itnet_compiler.passes.rules")
    return tuple(value for module in modules for value in vars(module).values() if isinstance(value, KnownFunction))
