"""Division: while the original code of a module runs, the modules that it calls become boundaries of their own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..capture.examples import is_lazy
from .boundary import watched

if TYPE_CHECKING:
    from .program import Program

__all__ = ["division", "is_library_layer"]

# Files of torch.nn.modules whose layers work position by position.
_FILES = frozenset(
    {"activation", "batchnorm", "channelshuffle", "distance", "dropout", "flatten", "instancenorm", "linear", "loss"}
    | {"normalization", "pixelshuffle", "sparse"}
)


def division(program: Program) -> contextlib.AbstractContextManager[None]:
    """Within the block every module below ``program.root`` that Python code calls may become a boundary."""

    def wanted(module: nn.Module, path: str) -> bool:
        owned = "forward" in module.__dict__ or is_parametrized(module)  # by someone who will want to undo it
        known = owned or program.face.program(module) is not None
        # The first call of a lazy module changes its class.
        known = known or is_lazy(module)
        return not (known or _full(program, path) in program.policy.opened or is_library_layer(module))

    def install(module: nn.Module, path: str) -> None:
        # With it those of its class in the same list, which may be called later only (experts).
        owner, _, _ = path.rpartition(".")
        container, alike = program.root.get_submodule(owner), {path: module}
        if isinstance(container, (nn.ModuleList, nn.ModuleDict)):
            alike |= {f"{owner}.{name}".lstrip("."): child for name, child in container.named_children()}
        for below, child in alike.items():
            if type(child) is type(module) and wanted(child, below):
                inner = program.face.install(child, program.policy, _full(program, below))
                inner.plan_rules = list(program.plan_rules)

    return watched(program.root, wanted, install)


def _full(program: Program, path: str) -> str:
    return f"{program.path}.{path}".lstrip(".")


def is_library_layer(module: nn.Module) -> bool:
    """Whether ``module`` is one operator without mixing (Linear, Embedding, LayerNorm, ReLU …), as torch made it.

    There is nothing to rewrite in it, so that a graph of its own would only cost.
    """
    package, _, file = type(module).__module__.rpartition(".")
    return package == "torch.nn.modules" and file in _FILES and not module._modules and "forward" not in module.__dict__
