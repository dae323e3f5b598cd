"""Boundaries: the modules of a tree whose ``forward`` runs a captured graph, and who decides which they are."""

from __future__ import annotations

import contextlib
import fnmatch
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from ..errors import InputError, ItnetError
from ..ir.naming import prefixes
from ..passes.verify import Verifier

if TYPE_CHECKING:
    from .program import Program

__all__ = ["Face", "Policy", "is_plain", "is_transformed", "is_watching", "plainly", "resolve", "watched"]

Boundaries = str | Iterable[str | type[nn.Module]] | None


class Face(Protocol):
    """How modules become boundaries and stop being them."""

    def restore(self, tree: nn.Module) -> nn.Module:
        """Make every boundary in a cloned tree an instance of its original class again, in place."""

    def install(self, module: nn.Module, policy: Policy, path: str) -> Program:
        """Make ``module``, at ``path`` of the unified model, a boundary, in place."""

    def program(self, module: nn.Module) -> Program | None:
        """The program of a boundary; None for any other module."""


@dataclass
class Policy:
    """What holds for all boundaries of one unified model.

    Attributes:
        dynamic: Whether sizes stay symbolic.
        verify: Whether rewrites are checked and new variants compared with the original.
        opened: Paths of modules that stay Python, since boundaries were given below them.
        divide: Whether submodules of what cannot be captured become boundaries.
        failures: Why parts could not be captured, by mode, signature and classes; equal ones are not tried again.
        verifier: Checks rewrites; equal regions of all graphs once.
        slow: Forward functions that could not be traced with all sizes symbolic in reasonable time.
    """

    dynamic: bool = True
    verify: bool = True
    opened: frozenset[str] = frozenset()
    divide: bool = True
    slow: set[Any] = field(default_factory=set)
    failures: dict[Any, ItnetError] = field(default_factory=dict)
    verifier: Verifier = field(default_factory=Verifier)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "slow": set(), "failures": {}, "verifier": Verifier()}


def resolve(model: nn.Module, boundaries: Boundaries) -> tuple[list[str], Policy]:
    """Paths of the boundaries that a user asks for, and the policy with the modules above them opened.

    Args:
        model: The tree.
        boundaries: None (the root, and where it cannot be captured its largest parts that can), ``root`` (nothing
            else), ``blocks`` (repeated blocks), or module classes and globs over module paths.

    Raises:
        InputError: if nothing in the model fits.
    """
    if boundaries is None or boundaries == "root":
        return [], Policy(divide=boundaries is None)
    if boundaries == "blocks":
        chosen = _repeated_blocks(model)
        if not chosen:
            raise InputError(
                "the model has no repeated blocks",
                remedy="name the boundaries: boundaries=['encoder', 'decoder.*'] or boundaries=[MyBlock]",
            )
    else:
        wanted = [boundaries] if isinstance(boundaries, (str, type)) else list(boundaries)
        chosen = _outermost(path for want in wanted for path in _matching(model, want))
    opened = {above for path in chosen for above in prefixes(path)[:-1]}
    return chosen, Policy(opened=frozenset({"", *opened}))


def _matching(model: nn.Module, want: Any) -> list[str]:
    if isinstance(want, type):
        found = [path for path, module in model.named_modules() if path and isinstance(module, want)]
    elif isinstance(want, str):
        found = [path for path, _ in model.named_modules() if path and fnmatch.fnmatchcase(path, want)]
    else:
        raise InputError(
            f"a boundary is a module class or a glob over module paths, not {want!r}",
            remedy="boundaries=['encoder.layer.*'], boundaries=[MyBlock], 'blocks' or 'root'",
        )
    if not found:
        some = ", ".join([path for path, _ in model.named_modules() if path][:5])
        raise InputError(f"no module fits the boundary {want!r}", remedy=f"module paths here are {some} …")
    return found


def _outermost(paths: Iterable[str]) -> list[str]:
    found = dict.fromkeys(paths)
    return [path for path in found if not any(above in found for above in prefixes(path)[:-1])]


def _repeated_blocks(model: nn.Module) -> list[str]:
    """Outermost members of lists whose class occurs in the list more than once."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    found: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, containers):
            continue
        kinds = [type(child) for child in module.children()]
        for name, child in module.named_children():
            library = type(child).__module__.startswith("torch.nn") and not any(True for _ in child.children())
            if kinds.count(type(child)) > 1 and not library and not isinstance(child, containers):
                found.append(f"{path}.{name}".lstrip("."))
    return _outermost(found)


# ---- the original code, watched or left alone

_thread = threading.local()
_watching = threading.Lock()


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Within the block all boundaries run their original code."""
    before = is_plain()
    _thread.plain = True
    try:
        yield
    finally:
        _thread.plain = before


def is_plain() -> bool:
    """Whether ``plainly`` is on."""
    return getattr(_thread, "plain", False)


def is_watching() -> bool:
    """Whether ``watched`` is on."""
    return getattr(_thread, "watching", False)


def is_transformed() -> bool:
    """Whether calls are under a transform or a mode in which nothing can be captured: vmap, fake tensors, tracing."""
    return bool(
        torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
    )


@contextlib.contextmanager
def watched(root: nn.Module, wanted: Callable[[nn.Module, str], bool], install: Any) -> Iterator[None]:
    """While the original code of ``root`` runs, offer every module that Python code calls.

    Args:
        root: The module whose descendants are watched.
        wanted: Asked with a module that is about to be called and its path below ``root``.
        install: Called with the same where it says yes, before the call itself.
    """
    if not _watching.acquire(blocking=False):  # another thread is at it; the next call will do
        yield
        return
    paths = {id(module): path for path, module in root.named_modules() if path}
    thread, call = threading.get_ident(), nn.Module.__call__
    seen: set[int] = set()

    def offer(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        key = id(module)
        if key in paths and key not in seen and threading.get_ident() == thread and not torch.compiler.is_compiling():
            seen.add(key)
            if not is_plain() and wanted(module, paths[key]):
                install(module, paths[key])
        return call(module, *args, **kwargs)

    nn.Module.__call__ = offer  # type: ignore[method-assign]
    _thread.watching = True
    try:
        yield
    finally:
        nn.Module.__call__ = call  # type: ignore[method-assign]
        _thread.watching = False
        _watching.release()
