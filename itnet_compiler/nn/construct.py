"""Integral transforms that compute what known layers compute: a convolution, attention, a linear recurrence."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from .function import kernel
from .transform import IntegralTransform

__all__ = ["from_attention", "from_conv", "from_recurrence"]


@kernel
def taps(pos_q: Tensor, pos_k: Tensor, feat_q: Tensor, feat_k: Tensor, *, params: dict[str, Tensor]) -> Tensor:
    """One head a tap: 1 where the source lies at the tap's offset from the query."""
    return ((pos_k - pos_q - params["offsets"]).abs() < 0.5).to(pos_q.dtype)


@kernel
def dots(pos_q: Tensor, pos_k: Tensor, feat_q: Tensor, feat_k: Tensor, *, params: dict[str, Tensor]) -> Tensor:
    """Scaled products of queries and keys, head by head."""
    heads = params["query"].shape[0]
    q = torch.mv(params["query"].flatten(0, 1), feat_q) + params["query_bias"]
    k = torch.mv(params["key"].flatten(0, 1), feat_k) + params["key_bias"]
    return (q.view(heads, -1) * k.view(heads, -1)).sum(1) / math.sqrt(params["query"].shape[1])


@kernel
def decays(pos_q: Tensor, pos_k: Tensor, feat_q: Tensor, feat_k: Tensor, *, params: dict[str, Tensor]) -> Tensor:
    """a^(t − s) in each head, for s ≤ t; later sources take no part, and must not overflow."""
    return torch.exp(params["log_decay"] * (pos_q - pos_k).clamp(min=0.0))


def _transform(
    dim: int, heads: int, function: object, params: dict[str, Tensor], **options: object
) -> IntegralTransform:
    """A transform of counting measure, without head norm, whose positions count the tokens."""
    return _Counted(dim, heads, function, params=params, measure="counting", head_norm=False, **options)  # type: ignore[arg-type]


class _Counted(IntegralTransform):
    """Positions are 0, 1, 2 … by default."""

    def _positions(self, positions: Tensor | None, like: Tensor) -> Tensor:
        if positions is not None:
            return positions
        return torch.arange(like.shape[1], device=like.device, dtype=like.dtype)[None, :, None]


def from_conv(layer: nn.Conv1d) -> IntegralTransform:
    """The transform that computes a convolution, on (B, N, channels) instead of (B, channels, N).

    K_h(i, j) is 1 where j − i is the offset of tap h; the values are the source multiplied by the matrix of the tap,
    and the heads are summed.

    Args:
        layer: Of stride 1, without groups, with as much zero padding on each side that the length stays.

    Raises:
        InputError: for another convolution.
    """
    (size,), (dilation,), padding = layer.kernel_size, layer.dilation, layer.padding
    reach = dilation * (size - 1)
    same = padding == "same" or (isinstance(padding, tuple) and 2 * padding[0] == reach)
    if layer.stride != (1,) or layer.groups != 1 or not same or layer.padding_mode != "zeros":
        raise InputError(
            f"{layer} changes the length, has groups or another boundary",
            remedy="itnet.unify takes every convolution as it is",
        )
    inputs, outputs = layer.in_channels, layer.out_channels
    before = reach // 2
    offsets = dilation * torch.arange(size, dtype=layer.weight.dtype) - before
    found = _transform(
        outputs * size, size, taps, {"offsets": offsets}, source_dim=inputs, window=(before, reach - before)
    )
    found.query_dim = inputs  # the kernel does not look at them
    found.value.weight = nn.Parameter(layer.weight.detach().permute(2, 0, 1).reshape(size * outputs, inputs).clone())
    found.out = _HeadSum(size, layer.bias)
    return found


def from_attention(layer: nn.MultiheadAttention, *, causal: bool = False) -> IntegralTransform:
    """The transform that computes self-attention, batch first.

    K_h(i, j) is the softmax of the scaled product of query and key.

    Args:
        layer: Of one embedding size, without bias_k, added zero attention and dropout.
        causal: Whether position i sees sources up to i only.

    Raises:
        InputError: for another attention.
    """
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn or layer.dropout:
        raise InputError(
            "attention of several sizes, with bias_k, add_zero_attn or dropout",
            remedy="itnet.unify takes it as it is",
        )
    dim, heads = layer.embed_dim, layer.num_heads
    query, key, value = (part.detach().clone() for part in layer.in_proj_weight.chunk(3))
    bias = torch.zeros_like(layer.in_proj_weight[:, 0]) if layer.in_proj_bias is None else layer.in_proj_bias
    query_bias, key_bias, value_bias = (part.detach().clone() for part in bias.chunk(3))
    params = {
        "query": query.unflatten(0, (heads, -1)),
        "key": key.unflatten(0, (heads, -1)),
        "query_bias": query_bias,
        "key_bias": key_bias,
    }
    learned: dict[str, Tensor] = {name: nn.Parameter(tensor) for name, tensor in params.items()}
    found = _transform(dim, heads, dots, learned, normalise=True, causal=causal)
    found.value = nn.Linear(dim, dim)
    found.value.weight, found.value.bias = nn.Parameter(value), nn.Parameter(value_bias)
    found.out = _copied(layer.out_proj)
    return found


def from_recurrence(decay: Tensor, gain: Tensor | None = None) -> IntegralTransform:
    """The transform that computes h_t = a·h_{t−1} + b·x_t, channel by channel, from h = 0.

    K_c(t, s) = a_c^(t − s)·b_c for s ≤ t.

    Args:
        decay: a, (channels,), between 0 and 1.
        gain: b, (channels,); 1 by default.

    Raises:
        InputError: for decays out of that range.
    """
    if not bool(((decay > 0) & (decay <= 1)).all()):
        raise InputError("decays are between 0 and 1", remedy="give the factor of one step, e.g. 0.9")
    channels = decay.numel()
    log_decay = nn.Parameter(decay.detach().log())
    found = _transform(channels, channels, decays, {"log_decay": log_decay}, causal=True)
    gain = torch.ones_like(decay) if gain is None else gain.detach()
    found.value.weight = nn.Parameter(torch.diag(gain))
    found.out = nn.Identity()
    return found


class _HeadSum(nn.Module):
    """The sum over heads of (B, N, heads·channels), with a bias."""

    def __init__(self, heads: int, bias: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        total = x.unflatten(-1, (self.heads, -1)).sum(-2)
        return total if self.bias is None else total + self.bias


def _copied(layer: nn.Linear) -> nn.Linear:
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    twin.load_state_dict(layer.state_dict())
    return twin.to(layer.weight.dtype)
