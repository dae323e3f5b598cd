"""Native fast paths of torch's transformer layers, which a capture takes where eager code takes them.

In eval mode and where nothing needs a gradient, ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` call one
native operator each. Both operators have meta kernels, so a graph can hold them. All that keeps a trace off them are
two questions about tracing among the layers' own conditions; every other condition (mode, layout, masks, dtypes,
gradients, hooks …) the layers go on to decide themselves. In the throw-away clone that is traced, the layers therefore
run their own code with other globals, in which these two questions are answered as in eager code.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FAST_LAYERS", "open_fast_paths"]

FAST_LAYERS: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

_NO_FUNCTION = torch._C._disabled_torch_function_impl


def open_fast_paths(throwaway: nn.Module) -> list[str]:
    """Let the layers of a throw-away clone take their fast paths while traced, but its encoders no nested tensors.

    Whether encoders use nested tensors depends on the values of the padding mask. Returns a list that will hold, once
    the clone has been traced, the paths of encoders that eager code may put on them for this kind of call.
    """
    # Under a torch function mode of the caller's own (a default device, say) fast paths are shut.
    shut = torch._C._len_torch_function_stack() > 0
    nested: list[str] = []
    for path, module in throwaway.named_modules():
        if isinstance(module, FAST_LAYERS) and not shut:
            module.__class__ = _opened(type(module))
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False
            module.register_forward_pre_hook(_noting(path or "the model", nested), with_kwargs=True)
    return nested


def _opened(layer: type[nn.Module]) -> type[nn.Module]:
    """``layer`` with the code of torch's class seeing other globals, wherever it stands among the base classes."""
    base = next(base for base in FAST_LAYERS if issubclass(layer, base))
    forward = base.forward
    stand_ins = {"torch": _Torch(), "_is_make_fx_tracing": lambda: False}
    twin = types.FunctionType(
        forward.__code__, forward.__globals__ | stand_ins, forward.__name__, forward.__defaults__, forward.__closure__
    )
    twin.__kwdefaults__ = forward.__kwdefaults__
    name = {"__module__": layer.__module__, "__qualname__": layer.__qualname__}
    opened = types.new_class(layer.__name__, (base,), exec_body=lambda body: body.update(name, forward=twin))
    if layer is base:
        return opened
    return types.new_class(layer.__name__, (layer, opened), exec_body=lambda body: body.update(name))


class _Torch:
    """The module ``torch`` as the layers see it while they are traced."""

    def __init__(self) -> None:
        self.overrides = types.SimpleNamespace(has_torch_function=_has_torch_function)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def _native_multi_head_attention(*arguments: Any) -> tuple[Tensor, Tensor | None]:
        """The meta kernel returns an empty tensor where the others return no weights at all."""
        output, weights = torch._native_multi_head_attention(*arguments)
        need_weights = arguments[10]
        return output, weights if need_weights else None


def _has_torch_function(arguments: tuple[Any, ...]) -> bool:
    """Whether an argument is of a class that overrides functions. torch.export's own function modes do not count."""
    kinds = {type(argument) for argument in arguments} - {Tensor, nn.Parameter, type(None)}
    return any(getattr(kind, "__torch_function__", _NO_FUNCTION) is not _NO_FUNCTION for kind in kinds)


def _noting(path: str, nested: list[str]) -> Callable[..., None]:
    """A hook for an encoder that puts ``path`` into ``nested`` where eager code might convert its input."""

    def note(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        source = kwargs.get("src", args[0] if args else None)
        mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
        first = encoder.layers[0]
        trained = any(tensor.requires_grad for tensor in (source, *first.parameters()))
        shut = first.training or (trained and torch.is_grad_enabled())
        if mask is not None and not shut and torch.backends.mha.get_fastpath_enabled():
            nested.append(path)

    return note
