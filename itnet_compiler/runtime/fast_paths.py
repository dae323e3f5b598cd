"""What decides whether torch's transformer layers take their native fast paths: part of what a graph is valid for.

The layers look at mode, dtypes and devices, which ``TreeState`` reads, at the kinds of arguments, which the signature
holds, and at what is read here: whether anything could need a gradient, and whether fast paths are open at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..capture.fast_paths import FAST_LAYERS

__all__ = ["FastPaths"]


class FastPaths:
    """The layers of a module tree that have a fast path, and the conditions of taking it, read before every call."""

    def __init__(self, root: nn.Module) -> None:
        self._root, self._edition = root, 0
        self._walk()

    def _walk(self) -> None:
        modules = list(self._root.modules())
        self._layers = [
            (module.__dict__, [part._parameters for part in module.modules()])
            for module in modules
            if isinstance(module, FAST_LAYERS)
        ]
        self._stores = [store for module in modules for store in (module._parameters, module._buffers)]

    def read(self, leaves: list[Tensor], edition: int) -> tuple[bool, ...] | None:
        """``conditions`` of a call, given its tensors and the edition of the tree; None where fast paths are shut."""
        if edition != self._edition:
            self._edition = edition
            self._walk()
        if not self._layers:
            return None
        # A torch function mode (a default device, say) shuts them too.
        if torch._C._len_torch_function_stack() or not torch.backends.mha.get_fastpath_enabled():
            return None
        return self.conditions(leaves)

    def conditions(self, leaves: list[Tensor]) -> tuple[bool, ...] | None:
        """Equal results mean equal decisions in all layers; None where every layer is sure to take the plain path.

        First whether gradients are enabled. If they are, what requires one: a layer whose own parameters are frozen
        takes its fast path unless its input depends on something that does.
        """
        candidates = [stores for module, stores in self._layers if not module["training"]]
        if not candidates:
            return None
        if not torch.is_grad_enabled():
            return (False,)
        if all(_trainable(stores) for stores in candidates):
            return None
        tensors = [tensor for store in self._stores for tensor in store.values() if tensor is not None]
        return (True, *[tensor.requires_grad for tensor in (*leaves, *tensors)])


def _trainable(stores: Iterable[Mapping[str, Tensor | None]]) -> bool:
    for store in stores:
        for tensor in store.values():
            if tensor is not None and tensor.requires_grad:
                return True
    return False
