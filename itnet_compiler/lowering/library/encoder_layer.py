"""Library lowering of ``EncoderLayer``: torch's native encoder layer."""

from __future__ import annotations

import torch

from ...ir.encoder_layer import EncoderLayer
from ...ir.kernel import Spec
from ...ir.projected_softmax import MASKS
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = EncoderLayer

_functions = torch._C._VariableFunctions


def lower(spec: Spec) -> Lowered:
    """The call that ``nn.TransformerEncoderLayer`` makes on its fast path. The operator has no derivative."""
    kernel = spec.kernel
    assert isinstance(kernel, EncoderLayer)
    mask, mask_type = ("mask", MASKS.index(kernel.mask)) if kernel.mask else ("None", None)
    arguments = [
        f"input, input.size(-1), {kernel.heads}",
        "qkv_weight, qkv_bias, proj_weight, proj_bias",
        f"{kernel.activation == 'gelu'}, {kernel.norm_first}, {kernel.eps!r}",
        "norm_weight_1, norm_bias_1, norm_weight_2, norm_bias_2",
        "ffn_weight_1, ffn_bias_1, ffn_weight_2, ffn_bias_2",
        f"{mask}, {mask_type}",
    ]
    namespace = {"encoder_layer": _functions._transformer_encoder_layer_fwd}
    return Lowered(spec.operands, f"encoder_layer({', '.join(arguments)})", namespace)
