"""Native fast paths of torch's transformer layers, which a capture takes where eager code takes them.

In eval mode and where nothing needs a gradient, ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` call one
native operator each. Both operators have meta kernels, so a graph can hold them. All that keeps a trace off them are
checks for tracing among the layers' own conditions. The stand-ins here answer these checks as in eager code; every
other condition (mode, layout, masks, dtypes, gradients, hooks …) the layers decide themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, transformer

__all__ = ["FAST_LAYERS", "STAND_INS", "prepare"]

FAST_LAYERS: tuple[type[nn.Module], ...] = (nn.MultiheadAttention, nn.TransformerEncoderLayer)

# torch.export enters torch function modes of its own, for which the layers' question is always answered with yes.
_ASKING = (vars(activation), vars(transformer))
_NO_FUNCTION = torch._C._disabled_torch_function_impl


def _has_torch_function(original: Callable[..., Any], arguments: Any) -> bool:
    """Whether a tensor is of a class that overrides functions; modes aside, where a transformer layer asks."""
    caller = sys._getframe(2)  # this function, the guard in ``leaves``, the caller
    if not any(caller.f_globals is module for module in _ASKING):
        return original(arguments)
    kinds = {type(argument) for argument in arguments} - {Tensor, nn.Parameter, type(None)}
    return any(getattr(kind, "__torch_function__", _NO_FUNCTION) is not _NO_FUNCTION for kind in kinds)


def _is_make_fx_tracing(original: Callable[..., Any]) -> bool:
    return False


def _native_multi_head_attention(original: Callable[..., Any], *arguments: Any) -> tuple[Tensor, Tensor | None]:
    """The meta kernel returns an empty tensor where the others return no weights at all."""
    output, weights = original(*arguments)
    need_weights = arguments[10]
    return output, weights if need_weights else None


# Where Python code finds a function, and what stands in for it: called with the original, then its arguments.
STAND_INS: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
    (torch.overrides, "has_torch_function", _has_torch_function),
    (activation, "_is_make_fx_tracing", _is_make_fx_tracing),
    (torch, "_native_multi_head_attention", _native_multi_head_attention),
)


def prepare(throwaway: nn.Module) -> list[str]:
    """Keep the encoders of a throw-away clone off nested tensors, which depend on the values of a padding mask.

    Returns a list that will hold, once the clone has been traced, the paths of encoders that eager code may put on
    them for this kind of call: there padded positions give zeros.
    """
    found: list[str] = []
    for path, module in throwaway.named_modules():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            module.use_nested_tensor = False

            def note(encoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                source = kwargs.get("src", args[0] if args else None)
                mask = kwargs.get("src_key_padding_mask", args[2] if len(args) > 2 else None)
                first = encoder.layers[0]
                trained = any(tensor.requires_grad for tensor in (source, *first.parameters()))
                shut = first.training or (trained and torch.is_grad_enabled())
                if mask is not None and not shut and torch.backends.mha.get_fastpath_enabled():
                    found.append(path or "the model")

            module.register_forward_pre_hook(note, with_kwargs=True)
    return found
