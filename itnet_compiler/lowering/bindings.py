"""ATen overloads and the Python bindings that reach the same kernels without the cost of an overload object.

Calling ``torch.ops.aten.add.Tensor`` costs 1 to 2.5 µs more than ``torch.add``, as much as a small layer. An operator
is listed here only where the binding takes the same arguments in the same order; all others are called as overloads.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["binding"]

# torch.<name>(…) takes exactly the arguments of aten.<name>.<overload>.
_TORCH = """
abs.default add.Tensor addmm.default addcmul.default addcdiv.default argmax.default amax.default amin.default
any.default all.default baddbmm.default batch_norm.default bmm.default cat.default ceil.default clamp.default
clamp_min.default clamp_max.default cos.default cumsum.default cumprod.default diff.default div.Tensor div.Scalar
dropout.default dropout_.default eq.Tensor eq.Scalar erf.default exp.default exp_.default embedding.default
feature_dropout.default flatten.using_ints flip.default floor.default gather.default ge.Tensor ge.Scalar
group_norm.default gt.Tensor gt.Scalar index_select.default instance_norm.default isinf.default isnan.default
layer_norm.default le.Tensor le.Scalar lerp.Scalar lerp.Tensor log.default log1p.default logical_and.default
logical_not.default logical_or.default lt.Tensor lt.Scalar masked_fill.Scalar masked_fill.Tensor matmul.default
maximum.default mean.dim minimum.default mm.default movedim.int mul.Tensor mul.Scalar narrow.default ne.Tensor
ne.Scalar neg.default pow.Tensor_Scalar pow.Tensor_Tensor prelu.default reciprocal.default relu.default relu_.default
repeat_interleave.self_int rms_norm.default roll.default round.default rsqrt.default rsub.Scalar rsub.Tensor
scatter.src selu.default sigmoid.default sigmoid_.default sign.default sin.default softmax.int log_softmax.int
split_with_sizes.default sqrt.default square.default squeeze.dim squeeze.default stack.default sub.Tensor
sum.dim_IntList tanh.default tanh_.default topk.default transpose.int tril.default triu.default unbind.int
unsqueeze.default where.self zeros_like.default ones_like.default full_like.default clone.default
pixel_shuffle.default channel_shuffle.default bernoulli.default rand_like.default randn_like.default var.correction
std.correction threshold.default rot90.default alpha_dropout.default conj.default outer.default
""".split()

# torch._C._nn.<name>
_NN = """
elu.default elu_.default gelu.default glu.default hardsigmoid.default hardsigmoid_.default hardswish.default
hardswish_.default hardtanh.default hardtanh_.default leaky_relu.default leaky_relu_.default linear.default
log_sigmoid.default mish.default mish_.default pad.default relu6.default relu6_.default silu.default silu_.default
softplus.default
""".split()

# Tensor.<name>
_METHODS = """
add_.Tensor sub_.Tensor mul_.Tensor div_.Tensor div_.Scalar mul_.Scalar chunk.default clamp_.default
clamp_min_.default contiguous.default copy_.default detach.default expand.default expand_as.default fill_.Scalar
masked_fill_.Scalar masked_fill_.Tensor permute.default repeat.default reshape.default select.int sum.default
mean.default to.dtype type_as.default unfold.default view.default view_as.default reshape_as.default bernoulli_.float
zero_.default
""".split()

_DIRECT: dict[str, Callable[..., Any]] = {
    "aten.sym_size.int": Tensor.size,
    "aten.split.Tensor": Tensor.split,
    "aten.max.dim": torch.max,
    "aten.min.dim": torch.min,
}


@cache
def _table() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {}
    for owner, names in ((torch, _TORCH), (torch._C._nn, _NN), (Tensor, _METHODS)):
        for name in names:
            function = getattr(owner, name.split(".")[0], None)
            if function is not None:
                table[f"aten.{name}"] = function
    return table | _DIRECT


def binding(target: Any) -> Callable[..., Any]:
    """The cheapest callable that does what ``target`` (an ATen overload or any callable) does."""
    if isinstance(target, torch._ops.OpOverload):
        return _table().get(str(target), target)
    return target


# Python operators are written as such in generated code.
OPERATORS: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.truediv: "/",
}
